"""`eva-dist show`: what is drawn is what the artifact holds."""

import json

import pytest
from safetensors.numpy import load_file

from tests.commands import run_command
from tests.made_artifacts import publish, write_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "one"
    write_artifact(folder, blocks=5)
    return folder


@pytest.fixture
def run(capsys, folder, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda *arguments: run_command(capsys, "show", *arguments)


def test_the_document_is_what_the_files_hold(run, folder):
    ran = run(folder, "--json", "--layers")
    rows = load_file(folder / "eva_state_dict.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {layer["name"]: layer["rank"] for layer in ran.json["layers"]} == {n: len(r) for n, r in rows.items()}
    assert [layer["name"] for layer in ran.json["layers"]] == [entry[0] for entry in manifest["decisive"]["layers"]]
    kinds = {kind["name"]: kind for kind in ran.json["kinds"]}
    assert list(kinds) == ["q_proj", "k_proj", "down_proj"]
    assert sum(kind["parameters"] for kind in kinds.values()) == manifest["trainable_parameters"]
    assert {entry["path"]: entry["size"] for entry in ran.json["files"]} == {
        path.name: path.stat().st_size for path in folder.iterdir()
    }
    assert (ran.json["eva"]["rho"], ran.json["fingerprint"]) == (2.0, manifest["fingerprint"])
    assert "layers" not in run(folder, "--json").json


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_terminal_and_says_how_to_load_it(run, folder, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    ran = run(folder, "--layers")
    assert ran.code == 0 and max(map(len, ran.out.splitlines())) <= width
    assert "done: 15 of 15 layers converged" in ran.out and "r=4 rho=2 tau=0.9" in ran.out
    assert "eva_dist.load_eva_state_dict(" in ran.out and "PeftModel.from_pretrained(base," in ran.out
    assert "adapter_model.safetensors" in ran.out and "model.layers.4.mlp.down_proj" in ran.out
    assert "\x1b" not in ran.out
    drawn = {
        line.split()[0]: line.split()[1]
        for line in ran.out.partition("rank by transformer block")[2].splitlines()
        if "_proj" in line and "▁" <= line.split()[1][0] <= "█"
    }
    assert all(len(drawn[kind]) == 10 for kind in ("q_proj", "k_proj", "down_proj"))


def test_a_name_in_a_store_and_one_that_is_none(run, folder, tmp_path):
    publish(str(tmp_path / "store"), folder, "team/tiny@v1")
    ran = run("team/tiny@v1", "--store", tmp_path / "store")
    assert ran.code == 0 and "done: 15 of 15 layers" in ran.out
    wrong = run("team/tiny@v2", "--store", tmp_path / "store")
    assert wrong.code == 1 and "it has v1" in wrong.err and wrong.out == ""
    assert run("a b", "--store", tmp_path / "store").code in (1, 2)


def test_it_is_called_what_it_was_asked_for_by(run, folder, tmp_path):
    """Not what its manifest says: that is the name it was first given, and may be another artifact's by now."""
    store = str(tmp_path / "store")
    publish(store, folder, "team/tiny@own")
    publish(store, folder, "lab/copy@v2")

    def told(source):
        return dict(line.split(maxsplit=1) for line in run(source, "--store", store).out.splitlines()[:3])

    assert told("lab/copy")["artifact"] == "lab/copy@v2"
    assert told("lab/copy")["first"] == "published as  team/tiny@own"
    assert told("team/tiny@own")["artifact"] == "team/tiny@own" and "first" not in told("team/tiny")
    assert told(str(folder))["first"] == "published as  team/tiny@own" and "artifact" not in told(str(folder))
    document = run("lab/copy", "--store", store, "--json").json
    assert (document["name"], document["first_published_as"]) == ("lab/copy@v2", "team/tiny@own")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": []}, "does not describe layers"),
        ({"layers": {"model.layers.0.q": {"rank": -1}}}, "layer 'model.layers.0.q' is not described"),
        ({"layers": {f"model.layers.{'9' * 5000}.q": {}}}, "names of layers are none"),
        ({"decisive": {"layers": [[{}], 5]}}, None),
    ],
)
def test_a_manifest_that_says_nothing_of_layers(run, folder, tmp_path, change, said):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | change))
    ran = run(copy)
    assert ran.code == (1 if said else 0)
    assert (said or "") in ran.err
