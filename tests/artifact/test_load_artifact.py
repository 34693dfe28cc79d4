"""Loading from afar: right tensors, no more bytes than they have, and no byte that is not proven."""

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eva_dist.artifact.load import load_eva_state_dict
from eva_dist.errors import IntegrityError, LayerError
from eva_dist.store.open_artifact import open_artifact
from eva_dist.store.store import Store
from tests.fake_hub import FakeHub, running
from tests.own_run import own_run
from tests.s3_server import s3_server

FILE = "eva_state_dict.safetensors"
Q = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
HEADER_BYTES = 2500


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running() as found:
        yield found


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EVA_DIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"


@pytest.fixture
def copied(built, tmp_path) -> Path:
    return shutil.copytree(built.folder, tmp_path / "copied")


@pytest.fixture
def truth(built) -> dict[str, torch.Tensor]:
    return load_file(built.folder / FILE)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == torch.float32 and ours[name].is_contiguous()
        assert torch.equal(ours[name], tensor), name


def size_of(tensors) -> int:
    return sum(tensor.numel() * 4 for tensor in tensors.values())


def test_every_place_gives_the_same_tensors(built, truth, bucket, hub, tmp_path):
    hub.put(built.folder)
    Store(f"{bucket}/every").publish_folder(built.folder, "team/tiny", "v1")
    Store("memory://every").publish_folder(built.folder, "team/tiny", "v1")
    folder = Store(str(tmp_path / "store"))
    folder.publish_folder(built.folder, "team/tiny", "v1")
    words = [str(built.folder), built.folder.as_uri(), f"{hub.url}/org/name", f"{bucket}/every/team/tiny@v1"]
    words += ["memory://every/team/tiny", folder.revision_url("team/tiny", "v1"), f"{folder.url}/team/tiny@v1"]
    for word in words:
        assert_same(load_eva_state_dict(word, prefix=""), truth)
        some = load_eva_state_dict(word, layers=["q_proj"])
        assert_same(some, {f"base_model.model.{name}": truth[name] for name in Q})
    assert_same(load_eva_state_dict("team/tiny@v1", prefix="", store_url=folder.url), truth)


def test_only_the_layers_asked_for_travel_over_http_and_once(built, truth, hub):
    hub.put(built.folder)
    url = f"{hub.url}/org/name"
    wanted = {name: truth[name] for name in Q}
    told: list[int] = []
    assert_same(load_eva_state_dict(url, prefix="", layers=["q_proj"], progress=told.append), wanted)
    assert size_of(wanted) < hub.bytes_of(FILE) < size_of(wanted) + HEADER_BYTES < size_of(truth) / 2
    assert sum(told) == size_of(wanted)
    hub.asked.clear()
    assert_same(load_eva_state_dict(url, prefix="", layers=["q_proj"]), wanted)
    assert hub.bytes_of(FILE) == 0
    load_eva_state_dict(url, layers=["q_proj", "down_proj"])
    down = {name: tensor for name, tensor in truth.items() if name.endswith("down_proj")}
    assert size_of(down) < hub.bytes_of(FILE) < size_of(down) + HEADER_BYTES


def test_equal_tensors_travel_once(built, truth, hub):
    """Members of an input group that got the same rank have the same rows."""
    hub.put(built.folder)
    k, q = "model.layers.0.self_attn.k_proj", Q[0]
    assert torch.equal(truth[k], truth[q])
    load_eva_state_dict(f"{hub.url}/org/name", layers=[q])
    hub.asked.clear()
    assert_same(load_eva_state_dict(f"{hub.url}/org/name", prefix="", layers=[k]), {k: truth[k]})
    assert hub.bytes_of(FILE) == 0


def test_only_the_layers_asked_for_travel_from_s3(built, truth, bucket, monkeypatch):
    store = Store(f"{bucket}/some")
    store.publish_folder(built.folder, "team/tiny", "v1")
    travelled = []
    whole = Store.read_range

    def counted(self, entry, start, end):
        content = whole(self, entry, start, end)
        travelled.append((entry.path, len(content)))
        return content

    monkeypatch.setattr(Store, "read_range", counted)
    wanted = {name: tensor for name, tensor in truth.items() if ".0." in name}
    assert_same(load_eva_state_dict(f"{bucket}/some/team/tiny", prefix="", layers=r".*layers\.0\..*"), wanted)
    assert {path for path, _ in travelled} == {FILE} and len(travelled) == 3  # length, header, neighbours in one
    assert size_of(wanted) < sum(size for _, size in travelled) < size_of(wanted) + HEADER_BYTES


def test_a_whole_file_that_is_here_is_not_asked_for_again(built, truth, hub):
    hub.put(built.folder)
    load_eva_state_dict(f"{hub.url}/org/name")
    hub.asked.clear()
    assert_same(load_eva_state_dict(f"{hub.url}/org/name", prefix="", layers=Q[:1]), {Q[0]: truth[Q[0]]})
    assert hub.bytes_of(FILE) == 0


@pytest.mark.parametrize("why", ["no hashes", "no ranges", "all layers"])
def test_the_whole_file_comes_where_parts_cannot_be_had_or_are_all(copied, truth, hub, why):
    if why == "no hashes":
        rewrite(copied, tensors=None)
    hub.ranges = why != "no ranges"
    hub.put(copied)
    layers = ".*" if why == "all layers" else ["q_proj"]
    wanted = truth if why == "all layers" else {name: truth[name] for name in Q}
    assert_same(load_eva_state_dict(f"{hub.url}/org/name", prefix="", layers=layers), wanted)
    assert (copied / FILE).stat().st_size <= hub.bytes_of(FILE)


def test_a_flipped_bit_in_a_part_is_found_and_not_kept(copied, hub, cache):
    last = "model.layers.0.mlp.down_proj"
    content = bytearray((copied / FILE).read_bytes())
    content[8 + len(header_of(copied)) + json.loads(header_of(copied))[last]["data_offsets"][0]] ^= 1
    (copied / FILE).write_bytes(content)
    hub.put(copied)
    load_eva_state_dict(f"{hub.url}/org/name", layers=["q_proj"])
    kept = len(list((cache / "tensors").rglob("*")))
    with pytest.raises(IntegrityError, match=f"{last} has sha256 .*, but its manifest says"):
        load_eva_state_dict(f"{hub.url}/org/name", layers=[last])
    assert len(list((cache / "tensors").rglob("*"))) == kept
    with pytest.raises(IntegrityError, match=f"{FILE} has sha256"):
        load_eva_state_dict(f"{hub.url}/org/name")


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (["q_proj", "qproj"], "layers: qproj is none of the artifact's 14 layers; it has q_proj"),
        (["model.layers.2.self_attn.q_proj"], "it has model.layers.1.self_attn.q_proj"),
        ("q_proj", "layers: q_proj is none of .* it has q_proj"),
        (".*(", "must be a regular expression"),
        ([], r"layers: \[\] is none"),
    ],
)
def test_layers_that_do_not_exist(built, layers, why):
    with pytest.raises(LayerError, match=why):
        load_eva_state_dict(built.folder, layers=layers)


def test_layers_are_named_as_in_peft(built):
    def chosen(layers):
        return sorted(
            name.removeprefix("base_model.model.") for name in load_eva_state_dict(built.folder, layers=layers)
        )

    assert chosen(["q_proj"]) == chosen(["self_attn.q_proj"]) == chosen(r".*\.q_proj") == Q
    assert chosen(Q[:1]) == chosen([f"base_model.model.{Q[0]}"]) == Q[:1]
    assert len(chosen(["q_proj", "0.mlp.up_proj"])) == 3


def header_of(folder: Path) -> bytes:
    content = (folder / FILE).read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def rewrite(folder: Path, **changes) -> None:
    """Change the manifest; None takes a key away. The state dict's hash and size are made to fit."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    content = (folder / FILE).read_bytes()
    manifest["files"][FILE] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest = {key: value for key, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def shifted(header, name, by_start, by_end):
    start, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [start + by_start, end + by_end]


def change(**said):
    return lambda header: header[Q[0]].update(said)


LIES = {
    "beyond the file": (lambda h: shifted(h, Q[0], 1 << 40, 1 << 40), "no gaps"),
    "an overlap": (lambda h: shifted(h, Q[0], -4, -4), "no gaps, no overlaps"),
    "a wider type": (change(dtype="F64"), "is F64"),
    "another type": (change(dtype="I32"), "as I32"),
    "no type": (change(dtype="F33"), "header is none"),
    "a larger shape": (change(shape=[4096, 4096]), "in .* bytes"),
    "a shape of that size": (lambda h: h[Q[0]].update(shape=h[Q[0]]["shape"][::-1]), "as F32 .* but its manifest says"),
    "a negative shape": (change(shape=[-1, -32]), "sizes or offsets that are none"),
    "a true shape": (change(shape=[True, 32]), "sizes or offsets that are none"),
    "a huge shape": (change(shape=[1 << 60, 1 << 60]), "sizes or offsets that are none"),
    "swapped offsets": (lambda h: h[Q[0]]["data_offsets"].reverse(), "in -"),
    "three offsets": (change(data_offsets=[0, 1, 2]), "header is none"),
    "another name": (lambda h: h.update({"other": h.pop(Q[0])}), "in only one of its header and its manifest"),
    "one too few": (lambda h: h.pop(Q[0]), "no gaps|accounts for"),
}  # fmt: skip


@pytest.mark.parametrize("layers", [None, ["q_proj"]])
@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_are_refused(copied, hub, lie, layers):
    """By the manifest's own hash of the file they are right: who publishes may lie, too."""
    tell, why = LIES[lie]
    header = json.loads(header_of(copied))
    tell(header)
    write_header(copied, json.dumps(header).encode())
    rewrite(copied)
    hub.put(copied)
    for source in (copied, f"{hub.url}/org/name"):
        with pytest.raises(IntegrityError, match=why) as caught:
            load_eva_state_dict(source, layers=layers)
        assert FILE in str(caught.value) and str(source) in str(caught.value)


@pytest.mark.parametrize(
    ("length", "why"),
    [(0, "claims 0 bytes"), (1 << 40, "claims 1099511627776 bytes"), ((1 << 64) - 1, "claims"), (None, "claims")],
)
def test_header_lengths_that_lie_are_refused_before_a_byte_is_set_aside(copied, hub, length, why):
    content = (copied / FILE).read_bytes()
    too_long = len(content) - 8 + 1 if length is None else length
    (copied / FILE).write_bytes(struct.pack("<Q", too_long) + content[8:])
    rewrite(copied)
    hub.put(copied)
    with pytest.raises(IntegrityError, match=why):
        load_eva_state_dict(f"{hub.url}/org/name", layers=["q_proj"])
    assert hub.bytes_of(FILE) == 8


@pytest.mark.parametrize(
    "header",
    [b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b'{"a":{"dtype":"F32","shape":[0,1],"data_offsets":[0,0]}}', b"[" * 100000],
)
def test_headers_that_are_none(copied, header):
    write_header(copied, header)
    rewrite(copied)
    with pytest.raises(IntegrityError, match="its header"):
        load_eva_state_dict(copied)


def test_a_name_that_is_there_twice(copied):
    header = header_of(copied).rstrip()
    double = json.dumps({Q[0]: json.loads(header)[Q[0]]}).encode()
    write_header(copied, header[:-1] + b"," + double[1:])
    rewrite(copied)
    with pytest.raises(IntegrityError, match="a key is there twice"):
        load_eva_state_dict(copied)


def test_a_file_of_no_bytes(copied):
    (copied / FILE).write_bytes(b"")
    rewrite(copied)
    with pytest.raises(IntegrityError, match="its header claims"):
        load_eva_state_dict(copied)


@pytest.mark.parametrize("hashes", [[], {"x": "../../x"}, {Q[0]: 5}])
def test_hashes_that_are_none(copied, hub, hashes):
    rewrite(copied, tensors=hashes)
    hub.put(copied)
    with pytest.raises(IntegrityError, match="`tensors` in its manifest must be"):
        load_eva_state_dict(f"{hub.url}/org/name", layers=["q_proj"])


@pytest.mark.parametrize("poison", ["extra tensor", "missing tensor", "rank -1", "rank 4.0", "no layer"])
def test_tensors_that_are_not_the_layers_are_refused(copied, hub, poison):
    manifest = json.loads((copied / "manifest.json").read_text())
    layers, hashes = manifest["layers"], manifest["tensors"]
    if poison == "extra tensor":
        hashes["evil.q_proj"] = "0" * 64
    elif poison == "missing tensor":
        del hashes[Q[0]]
    elif poison == "no layer":
        layers[Q[0]] = None
    else:
        layers[Q[0]]["rank"] = -1 if poison == "rank -1" else 4.0
    rewrite(copied, layers=layers, tensors=hashes)
    hub.put(copied)
    with pytest.raises(IntegrityError, match="in its manifest"):
        load_eva_state_dict(f"{hub.url}/org/name", layers=["q_proj"])


def write_header(folder: Path, header: bytes) -> None:
    """Replace the header, with a length that fits."""
    content = (folder / FILE).read_bytes()
    data = content[8 + len(header_of(folder)) :]
    (folder / FILE).write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_the_manifest_has_the_hash_of_every_tensor(built, truth):
    hashes = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in truth.items()}
    assert built.manifest["tensors"] == hashes


# peft 0.21 reads what transformers 5.23 deprecates, for every adapter alike.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_card_of_a_run_that_published_to_a_bucket_runs_as_it_stands(configure, bucket):
    published = own_run(configure(store={"url": f"{bucket}/run"}))
    card = open_artifact(published.url).read("README.md").decode()
    models = []
    for code in re.findall(r"```python\n(.*?)\n```", card, flags=re.DOTALL):
        names: dict = {}
        exec(code, names)
        models.append(names["model"].state_dict())
    one, two = models
    assert f"eva_dist.fetch('{bucket}/run/snapshots/{published.fingerprint}')" in card
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    truth = load_eva_state_dict(published.url)
    assert all(torch.equal(one[f"{name}.lora_A.default.weight"], a) for name, a in truth.items() if len(a))
