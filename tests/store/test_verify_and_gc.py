"""`verify` reads every byte once; `gc` takes what nothing names, and nothing else."""

import json
import os
import time
from datetime import timedelta

import pytest

from eva_dist.errors import ArtifactNotFoundError, IntegrityError
from eva_dist.store.gc import find_garbage, remove_garbage
from eva_dist.store.snapshot import sealed
from eva_dist.store.store import Store
from eva_dist.store.store_reader import blob_key, manifest_key, revision_key
from eva_dist.store.verify import verify_store
from tests.store.artifacts import FILES, ONE, TWO, builder

NOW = timedelta(0)


def problems(store: Store) -> dict[tuple[str, str | None], str]:
    return {(c.name, c.path): c.problem for c in verify_store(store) if c.problem}


@pytest.fixture
def two(store) -> Store:
    return filled(store)


@pytest.fixture
def folder(tmp_path) -> Store:
    return filled(Store(str(tmp_path)))


def filled(store: Store) -> Store:
    store.publish(ONE, "team/name", "v1", builder("one", ONE))
    store.publish(TWO, "team/name", "v2", builder("two", TWO))
    return store


def long_ago(store: Store, key: str) -> None:
    """Let an object of a folder be as old as last month; what else `touch` reaches is tested with the contract."""
    then = time.time() - 30 * 86400
    os.utime(store.root / key, (then, then))


# --- verify ---


def test_a_sound_store_has_no_problems_and_every_file_was_looked_at(two, monkeypatch):
    read = []
    hash_file = Store.verify_file
    monkeypatch.setattr(
        Store, "verify_file", lambda self, entry: (read.append(entry.sha256), hash_file(self, entry))[1]
    )
    checked = list(verify_store(two))
    assert [c.problem for c in checked if c.problem] == []
    assert {(c.name, c.path) for c in checked} == {
        *((name, path) for name in (ONE, TWO) for path in (*FILES, "manifest.json")),
        ("team/name@v1", None),
        ("team/name@v2", None),
    }
    assert len(read) == len(set(read)) == 3  # the picture that both have is read once


def test_each_kind_of_damage_is_found_and_named(two):
    objects = two._objects
    one = two.snapshot(ONE)
    objects.put(blob_key(one.entry(FILES[0]).sha256), b"onf")
    objects.delete(blob_key(one.entry(FILES[1]).sha256))
    found = problems(two)
    assert "has sha256" in found.pop((ONE, FILES[0]))
    assert "is missing though its manifest lists it" in found.pop((ONE, FILES[1]))
    assert "is missing" in found.pop((TWO, FILES[1]))  # it was both's
    assert all("folder" in problem for problem in found.values())
    objects.put(manifest_key(ONE), b"{")
    objects.delete(manifest_key(TWO))
    found = problems(two)
    assert "is no manifest" in found[ONE, "manifest.json"]
    assert f"points to {TWO}, which the store does not hold" in found["team/name@v2", None]


def test_a_manifest_that_has_changed_tells_so(store):
    def build(folder):
        manifest = sealed(builder("one", ONE)(folder) | {"steps": 3, "share": 0.1, "name": "é"})
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
        return manifest

    store.publish(ONE, "team/name", "v1", build)
    assert problems(store) == {}
    content = store.snapshot(ONE).content
    store._objects.put(manifest_key(ONE), content.replace(b'"steps": 3', b'"steps": 9'))
    assert "has changed since it was written" in problems(store)[ONE, "manifest.json"]


# --- gc ---


def test_what_is_named_is_no_garbage_however_old(two):
    found = find_garbage(two, NOW)
    assert (found.manifests, found.blobs, found.paths) == ((), (), ())


def test_what_nothing_names_goes_and_the_rest_stays(two):
    two.remove("team/name", "v1")
    two._objects.put(blob_key("f" * 64), b"of a publisher that was killed")
    found = find_garbage(two, NOW)
    assert found.manifests == (ONE,)
    own = blob_key(two.snapshot(ONE).entry(FILES[0]).sha256)
    assert {blob.key for blob in found.blobs} == {own, blob_key("f" * 64)} and found.size == 33
    assert two.find(ONE) is not None  # a dry run
    assert remove_garbage(two, found) == 33
    assert two.find(ONE) is None and two.find(TWO) is not None and problems(two) == {}
    assert find_garbage(two, NOW).blobs == ()


def test_what_is_young_is_left_alone(two):
    two.remove("team/name", "v1")
    found = find_garbage(two)
    assert (found.manifests, found.blobs) == ((), ())


def test_what_is_named_again_between_looking_and_removing_stays(two):
    two.remove("team/name", "v1")
    found = find_garbage(two, NOW)
    two.point(ONE, "team/other", "v1")
    assert remove_garbage(two, found) == 0
    assert two.find(ONE) is not None and problems(two) == {}


def test_the_grace_begins_when_the_name_is_taken_away(folder):
    """An artifact of last year whose name went by mistake is there for another day."""
    long_ago(folder, manifest_key(ONE))
    folder.remove("team/name", "v1")
    assert find_garbage(folder).manifests == ()
    folder.point(ONE, "team/name", "v3")
    long_ago(folder, manifest_key(ONE))
    folder.point(TWO, "team/name", "v3")
    assert find_garbage(folder).manifests == ()


def test_an_old_artifact_that_is_named_again_is_young_before_it_is_named(folder, monkeypatch):
    """`gc` that has looked before the name is there must find the manifest changed."""
    folder.remove("team/name", "v1")
    long_ago(folder, manifest_key(ONE))
    put, seen = folder._objects.put, []

    def look(key, content, create=False):
        seen.append(find_garbage(folder).manifests)
        return put(key, content, create)

    monkeypatch.setattr(folder._objects, "put", look)
    folder.point(ONE, "team/name", "v1")
    assert seen == [()]


def test_an_artifact_that_gc_takes_while_it_is_named_is_not_reported_as_published(two, monkeypatch):
    put = two._objects.put

    def after_gc(key, content, create=False):
        two._objects.delete(manifest_key(ONE))
        return put(key, content, create)

    monkeypatch.setattr(two._objects, "put", after_gc)
    with pytest.raises(ArtifactNotFoundError, match="publish it first"):
        two.point(ONE, "team/name", "v9")


def test_nothing_is_taken_while_a_name_does_not_say_what_it_points_to(two):
    key = revision_key("team/name", "v1")
    for content in (b"", b"[" * 60_000, b'{"fingerprint": "../x"}', b" " * 70_000):
        two._objects.put(key, content)
        assert two.revisions_and_broken()[1] == [key] and [one.revision for one in two.revisions()] == ["v2"]
        assert "does not say what it points to" in problems(two)[key, None]
        with pytest.raises(IntegrityError, match=rf"{key} does not say"):
            find_garbage(two, NOW)
    two.remove("team/name", "v1")
    assert problems(two) == {}


def test_a_blob_that_is_written_again_meanwhile_stays(two):
    two.remove("team/name", "v1")
    found = find_garbage(two, NOW)
    own = found.blobs[0]
    time.sleep(1.1 if two.url.startswith("s3") else 0.01)  # the finest time that S3 tells
    two._objects.put(own.key, b"one")
    remove_garbage(two, found)
    assert two._objects.get(own.key) == b"one"


def test_a_publish_puts_again_what_gc_took_under_its_hands(store, monkeypatch):
    """gc removes a blob after the publisher saw it, and before its manifest names it."""
    store.publish(ONE, "team/name", "v1", builder("one"))
    shared = blob_key(store.snapshot(ONE).entry(FILES[1]).sha256)
    put = store._objects.put

    def put_after_gc(key, content, create=False):
        if key == manifest_key(TWO):
            store._objects.delete(shared)
        return put(key, content, create)

    monkeypatch.setattr(store._objects, "put", put_after_gc)
    store.publish(TWO, "team/name", "v2", builder("two"))
    assert store.read(store.snapshot(TWO).entry(FILES[1])) == b"png"


def test_nothing_is_taken_while_a_manifest_cannot_be_read(two):
    """What it names is not known: its files would look like garbage."""
    two._objects.put(manifest_key(TWO), b"{")
    with pytest.raises(IntegrityError, match=TWO):
        find_garbage(two, NOW)


def test_links_that_are_young_or_somebody_elses_stay(tmp_path):
    store = Store(str(tmp_path))
    store.publish(ONE, "team/name", "v1", builder())
    (tmp_path / "datasets/raw").mkdir(parents=True)
    (tmp_path / "datasets/raw/latest").symlink_to("/etc")
    (tmp_path / "snapshots" / TWO).symlink_to("../objects/trees/x")  # of a publisher at work
    assert find_garbage(store).paths == ()
    assert find_garbage(store, NOW).paths == (tmp_path / "snapshots" / TWO,)


def test_leftovers_in_a_folder(tmp_path):
    store = Store(str(tmp_path))
    store.publish(ONE, "team/name", "v1", builder("old"))
    old_tree = os.path.realpath(tmp_path / "snapshots" / ONE)
    store.publish(ONE, "team/name", "v1", builder("new"), overwrite=True)
    (tmp_path / "objects/blobs/aa").mkdir(exist_ok=True)
    (tmp_path / "objects/blobs/aa/half#1").write_bytes(b"an upload that was killed")
    (tmp_path / ".incoming/half").mkdir()
    (tmp_path / "team/gone").mkdir()
    (tmp_path / "team/gone/v1").symlink_to("../../snapshots/" + TWO)
    (tmp_path / "team/mine").mkdir()
    (tmp_path / "team/mine/thesis.txt").write_text("x")
    found = find_garbage(store, NOW)
    assert {str(path.relative_to(tmp_path)) for path in found.paths} == {
        os.path.relpath(old_tree, tmp_path), "objects/blobs/aa/half#1", ".incoming/half", "team/gone/v1",
    }  # fmt: skip
    remove_garbage(store, found)
    assert not any(os.path.lexists(path) for path in found.paths) and (tmp_path / "team/mine/thesis.txt").is_file()
    assert problems(store) == {} and (tmp_path / "team/name/v1" / FILES[0]).read_text() == "new"
