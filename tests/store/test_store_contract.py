"""What every store keeps to, wherever it lies."""

import asyncio
import hashlib
import json
import logging

import pytest

from eva_dist.errors import ArtifactNotFoundError, IntegrityError
from eva_dist.hashing import fingerprint
from eva_dist.store.cache import Cache
from eva_dist.store.store import Store
from eva_dist.store.store_artifact import StoreArtifactReader
from eva_dist.store.store_reader import blob_key, manifest_key
from eva_dist.store.verify import verify_store
from tests.store.artifacts import FILES, ONE, TWO, builder, content_of, names, refuse_to_build, write_artifact

# --- published and found ---


def test_what_is_published_is_found_by_fingerprint_and_by_name(store, store_url):
    assert store.find(ONE) is None and store.revisions() == [] and store.fingerprints() == {}
    published = store.publish(ONE, "team/name", "v1", builder())
    assert published.url == store.revision_url("team/name", "v1") and published.manifest["text"] == "tensors"
    again = Store(store_url)
    found = again.find(ONE)
    assert found is not None and found.manifest["text"] == "tensors" and found.url == again.snapshot_url(ONE)
    assert again.find(TWO) is None and list(again.fingerprints()) == [ONE]
    assert again.fingerprint_of("team/name", "v1") == ONE and again.fingerprint_of("team/name", "v2") is None
    assert content_of(again, "team/name", "v1") == "tensors"


def test_a_snapshot_lists_its_files_and_itself(store):
    store.publish(ONE, "team/name", "v1", builder(fingerprint=ONE))
    snapshot = store.snapshot(ONE)
    assert list(snapshot.files) == [FILES[0], "manifest.json", FILES[1]]
    assert snapshot.commit == hashlib.sha256(snapshot.content).hexdigest()[:40] and snapshot.fingerprint == ONE
    assert snapshot.size == len("tensors") + len("png") + len(snapshot.content)
    with pytest.raises(ArtifactNotFoundError, match=r"no 'nonsense'; it has eva_state_dict"):
        snapshot.entry("nonsense")


def test_a_known_fingerprint_is_pointed_to_and_not_built(store):
    store.publish(ONE, "team/name", "v1", builder())
    store.publish(ONE, "team/other", "v2", refuse_to_build)
    assert names(store) == ["team/name@v1", "team/other@v2"]
    assert [one.revision for one in store.revisions("team/other")] == ["v2"]


def test_files_that_artifacts_share_are_kept_once(store):
    store.publish(ONE, "team/name", "v1", builder("one"))
    store.publish(TWO, "team/name", "v2", builder("two"))
    assert len(list(store.objects_below("objects/blobs"))) == 3  # both have the same picture


def test_overwrite_replaces_what_a_fingerprint_stands_for(store):
    store.publish(ONE, "team/name", "v1", builder("old"))
    before = store.snapshot(ONE).commit
    published = store.publish(ONE, "team/name", "v1", builder("new"), overwrite=True)
    assert published.manifest["text"] == "new" and content_of(store, "team/name", "v1") == "new"
    assert store.snapshot(ONE).commit != before


def test_a_revision_moves_and_says_so(store, caplog):
    caplog.set_level(logging.INFO, logger="eva_dist.store.store")
    store.publish(ONE, "team/name", "v1", builder("one"))
    store.publish(ONE, "team/name", "v1", refuse_to_build)
    assert caplog.messages == []
    store.publish(TWO, "team/name", "v1", builder("two"))
    assert [f"team/name/v1 moved from {ONE} to {TWO}" in message for message in caplog.messages] == [True]
    assert content_of(store, "team/name", "v1") == "two"
    assert store.point(ONE, "team/name", "v1").manifest["text"] == "one"
    assert content_of(store, "team/name", "v1") == "one"


def test_point_wants_an_artifact(store):
    with pytest.raises(ArtifactNotFoundError, match=ONE):
        store.point(ONE, "team/name", "v1")
    assert store.revisions() == []


def test_remove_takes_the_name_alone(store):
    store.publish(ONE, "team/name", "v1", builder())
    with pytest.raises(ArtifactNotFoundError, match=r"no team/name@v2; it has v1"):
        store.remove("team/name", "v2")
    store.remove("team/name", "v1")
    assert store.revisions() == [] and store.find(ONE) is not None
    store.publish(ONE, "team/name", "v1", refuse_to_build)


def test_an_artifact_in_a_folder_is_published_after_it_was_verified(store, tmp_path):
    folder = write_artifact(tmp_path / "given")
    (folder / "stranger.txt").write_text("not listed, so not published")
    store.publish_folder(folder, "team/name", "v1")
    assert list(store.snapshot(ONE).files) == [FILES[0], "manifest.json", FILES[1]]
    (folder / FILES[0]).write_text("tensorz")
    with pytest.raises(IntegrityError, match=r"given/eva_state_dict.* has sha256 .* its manifest says"):
        store.publish_folder(folder, "team/name", "v2")
    (folder / FILES[0]).unlink()
    with pytest.raises(IntegrityError, match="is missing though the manifest lists it"):
        store.publish_folder(folder, "team/name", "v2")
    with pytest.raises(ArtifactNotFoundError, match=r"no artifact at .*nothing"):
        store.publish_folder(tmp_path / "nothing", "team/name", "v2")
    assert names(store) == ["team/name@v1"]


def test_a_folder_with_other_tensors_under_a_known_fingerprint_is_refused_or_replaces_them(store, tmp_path):
    store.publish_folder(write_artifact(tmp_path / "forged", "forged!"), "attacker/x", "r")
    genuine = write_artifact(tmp_path / "genuine")
    with pytest.raises(IntegrityError, match=r"has another eva_state_dict.safetensors under fingerprint 1+: .*--force"):
        store.publish_folder(genuine, "victim/good", "r")
    assert names(store) == ["attacker/x@r"]
    store.publish_folder(genuine, "victim/good", "r", overwrite=True)
    assert content_of(store, "victim/good", "r") == "tensors"


def test_a_sound_copy_mends_what_is_damaged(store, tmp_path):
    genuine = write_artifact(tmp_path / "genuine")
    store.publish_folder(genuine, "team/name", "v1")
    store._objects.put(blob_key(store.snapshot(ONE).entry(FILES[0]).sha256), b"tensosr")
    store.publish_folder(genuine, "team/name", "v1", overwrite=True)
    assert [checked.problem for checked in verify_store(store) if checked.problem] == []


def test_an_artifact_under_a_fingerprint_that_is_not_its_own_is_refused(store, tmp_path):
    """Somebody's run with that fingerprint would be answered with it."""
    folder = write_artifact(tmp_path / "given")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"decisive": {"method": "eva"}}))
    with pytest.raises(IntegrityError, match=r"is not that of `decisive`"):
        store.publish_folder(folder, "team/name", "v1")
    manifest |= {"decisive": {"method": "eva"}, "fingerprint": fingerprint({"method": "eva"})}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    store.publish_folder(folder, "team/name", "v1")


# --- what a reader means ---


def test_a_revision_is_found_by_name_fingerprint_commit_or_as_the_last(store):
    store.publish(ONE, "team/name", "v1", builder("one"))
    store.publish(TWO, "team/name", "v2", builder("two"))
    for said in ("v1", ONE, store.snapshot(ONE).commit):
        assert store.resolve("team/name", said).revision == "v1"
    assert store.resolve("team/name").revision == store.resolve("team/name", "main").revision == "v2"
    store.publish(ONE, "team/name", "main", refuse_to_build)
    assert store.resolve("team/name").fingerprint == store.resolve("team/name", "main").fingerprint == ONE


def test_another_repos_commit_is_not_ones_own(store):
    """Names are how access is granted: a commit must not open what another namespace published."""
    store.publish(ONE, "team/name", "v1", builder())
    store.publish(TWO, "other/name", "v1", builder("two"))
    with pytest.raises(ArtifactNotFoundError, match="it has v1"):
        store.resolve("other/name", store.snapshot(ONE).commit)


def test_what_is_not_there_is_said_with_what_is(store):
    with pytest.raises(ArtifactNotFoundError, match=r"no team/name; it is empty"):
        store.resolve("team/name")
    store.publish(ONE, "team/name", "rho2.0-tau0.99", builder())
    with pytest.raises(ArtifactNotFoundError, match=r"no team/nam; it has team/name"):
        store.resolve("team/nam")
    with pytest.raises(ArtifactNotFoundError, match=r"no team/name@rho2; it has rho2.0-tau0.99"):
        store.resolve("team/name", "rho2")


# --- bytes ---


def test_ranges_and_streams_give_the_bytes_asked_for(store, tmp_path):
    content = bytes(range(256)) * 20_000  # 5 MB: several chunks of a stream, several parts of an upload
    (folder := tmp_path / "large").mkdir()
    (folder / "large.bin").write_bytes(content)
    files = {"large.bin": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}}
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": ONE, "files": files}))
    store.publish_folder(folder, "team/name", "v1")
    entry = store.snapshot(ONE).entry("large.bin")

    async def streamed(start: int, end: int | None) -> bytes:
        chunks = [chunk async for chunk in store.stream(entry, start, end)]
        assert max(map(len, chunks), default=0) <= 4 << 20
        return b"".join(chunks)

    assert store.read(entry) == content and store.read_range(entry, 5, 9) == content[5:9]
    assert store.read_range(entry, len(content) - 2, len(content) + 5) == content[-2:]
    assert asyncio.run(streamed(0, None)) == content
    assert asyncio.run(streamed(1_000_001, 3_000_003)) == content[1_000_001:3_000_003]
    assert asyncio.run(streamed(7, 7)) == b""
    store.verify_file(entry)


def test_what_is_fetched_is_whole_verified_and_kept_where_it_is_right(store, tmp_path):
    store.publish(ONE, "team/name", "v1", builder())
    told: list[int] = []
    snapshot = store.snapshot(ONE)
    opened = StoreArtifactReader(store, snapshot, "there", Cache(tmp_path / "cache"))
    here = opened.fetch([FILES[1]])
    assert sorted(p.name for p in here.rglob("*") if p.is_file()) == ["manifest.json", "ranks.png"]
    assert opened.fetch(progress=told.append) == here and sum(told) == snapshot.entry(FILES[0]).size
    assert {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()} == set(snapshot.files)
    assert all((here / e.path).read_bytes() == store.read(e) for e in map(snapshot.entry, FILES))
    before = (here / FILES[0]).stat().st_mtime_ns
    (here / FILES[1]).write_text("gnp")
    opened.fetch()
    assert (here / FILES[0]).stat().st_mtime_ns == before
    assert (here / FILES[1]).read_text() == "png"


def test_a_flipped_bit_is_refused_by_every_reader(store, tmp_path):
    store.publish(ONE, "team/name", "v1", builder())
    snapshot = store.snapshot(ONE)
    entry = snapshot.entry(FILES[0])
    store._objects.put(blob_key(entry.sha256), b"tensosr")
    for read in (store.read, store.verify_file):
        with pytest.raises(IntegrityError, match=r"eva_state_dict.* has sha256 .* publish it again: "):
            read(entry)
    with pytest.raises(IntegrityError, match=r"eva_state_dict.* has sha256 .* nothing of it was kept"):
        StoreArtifactReader(store, snapshot, "there", Cache(tmp_path / "cache")).fetch()
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == ["manifest.json"]
    # ... and an overwrite heals it
    store.publish(ONE, "team/name", "v1", builder(), overwrite=True)
    assert content_of(store, "team/name") == "tensors"


@pytest.mark.parametrize(
    ("spoil", "stands"),
    [
        ("missing blob", "first"),  # the blob comes again, and with it the first one is whole
        ("short blob", "first"),
        ("no manifest", "again"),
        ("broken manifest", "again"),
        ("another's manifest", "again"),
    ],
)
def test_an_incomplete_artifact_is_not_found_and_is_mended(store, spoil, stands):
    store.publish(ONE, "team/name", "v1", builder("first", ONE))
    blob = blob_key(store.snapshot(ONE).entry(FILES[1]).sha256)
    objects = store._objects
    {
        "missing blob": lambda: objects.delete(blob),
        "short blob": lambda: objects.put(blob, b""),
        "no manifest": lambda: objects.delete(manifest_key(ONE)),
        "broken manifest": lambda: objects.put(manifest_key(ONE), b"{"),
        "another's manifest": lambda: objects.put(manifest_key(ONE), b'{"files": {}, "fingerprint": "22222222"}'),
    }[spoil]()
    assert store.find(ONE) is None
    assert store.publish(ONE, "team/name", "v1", builder("again", ONE)).manifest["text"] == stands
    assert store.find(ONE) is not None and content_of(store, "team/name") == stands
