"""A store shows an artifact whole or not at all, whatever happens to its publisher."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from eva_dist.store.local import LocalStore

from eva_dist.errors import ArtifactNotFoundError, StoreError

ONE, TWO = "1" * 64, "2" * 64


def builder(text: str = "tensors"):
    """Return a `build` that writes two files, one in a folder, and a manifest."""

    def build(folder: Path) -> dict:
        assert list(folder.iterdir()) == []
        (folder / "plots").mkdir()
        files = {"eva_state_dict.safetensors": text, "plots/ranks.png": "png"}
        for name, content in files.items():
            (folder / name).write_text(content)
        manifest = {"text": text, "files": {name: {"size": len(content)} for name, content in files.items()}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return manifest

    return build


def refuse_to_build(folder: Path) -> dict:
    raise AssertionError("built although it was there")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root) -> LocalStore:
    return LocalStore(root.as_uri())


def tree(folder: Path) -> set[str]:
    """Everything in the store, but for the empty folder where publishers work."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {".incoming", "snapshots"}


def assert_nothing_visible(root: Path) -> None:
    assert tree(root) == set()
    assert LocalStore(str(root)).find(ONE) is None


# --- the layout ---


def test_a_revision_is_a_relative_link_to_its_snapshot(store, root, tmp_path):
    published = store.publish(ONE, "team/name", "v1", builder())
    assert published.folder == root / "team" / "name" / "v1"
    assert published.url == published.folder.as_uri()
    assert published.manifest["text"] == "tensors" and published.fingerprint == ONE
    assert os.readlink(published.folder) == f"../../snapshots/{ONE}"
    assert (published.folder / "eva_state_dict.safetensors").read_text() == "tensors"
    assert list((root / ".incoming").iterdir()) == []
    moved = root.rename(tmp_path / "elsewhere")
    assert (moved / "team" / "name" / "v1" / "plots" / "ranks.png").read_text() == "png"


def test_files_have_the_usual_permissions(store):
    """A store is for a team: a private temporary folder must not become a private snapshot."""
    before = os.umask(0o022)
    try:
        folder = store.publish(ONE, "team/name", "v1", builder()).folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755


def test_find(store, root):
    assert store.find(ONE) is None
    store.publish(ONE, "team/name", "v1", builder())
    found = LocalStore(str(root)).find(ONE)
    assert found is not None and found.manifest["text"] == "tensors"
    assert found.folder == root / "snapshots" / ONE and found.url == found.folder.as_uri()
    assert store.find(TWO) is None


@pytest.mark.parametrize("spoil", ["missing file", "short file", "no manifest", "broken manifest"])
def test_an_incomplete_snapshot_is_not_found_and_is_replaced(store, spoil):
    folder = store.publish(ONE, "team/name", "v1", builder()).folder
    {
        "missing file": lambda: (folder / "plots" / "ranks.png").unlink(),
        "short file": lambda: (folder / "plots" / "ranks.png").write_text(""),
        "no manifest": lambda: (folder / "manifest.json").unlink(),
        "broken manifest": lambda: (folder / "manifest.json").write_text("{"),
    }[spoil]()
    assert store.find(ONE) is None
    assert store.publish(ONE, "team/name", "v1", builder("again")).manifest["text"] == "again"
    assert store.find(ONE) is not None


def test_paths_and_urls_are_the_same_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a b"
    assert LocalStore("a b").root == LocalStore(str(folder)).root == LocalStore(folder.as_uri()).root == folder


@pytest.mark.parametrize("url", ["", "s3://bucket", "https://host/x", "file://host/x"])
def test_other_urls_are_refused(url):
    with pytest.raises(StoreError, match=r"store\.url=.* must be .*; "):
        LocalStore(url)


# --- once is enough ---


def test_a_known_fingerprint_is_pointed_to_and_not_built(store, root):
    store.publish(ONE, "team/name", "v1", builder())
    second = store.publish(ONE, "team/other", "v2", refuse_to_build)
    assert second.folder == root / "team" / "other" / "v2"
    assert (second.folder / "manifest.json").is_file()


def test_overwrite_replaces_the_snapshot(store, root):
    store.publish(ONE, "team/name", "v1", builder("old"))
    published = store.publish(ONE, "team/name", "v1", builder("new"), overwrite=True)
    assert published.manifest["text"] == "new"
    assert (published.folder / "eva_state_dict.safetensors").read_text() == "new"
    assert list((root / ".incoming").iterdir()) == []


def test_a_revision_moves_and_says_so(store, caplog):
    caplog.set_level(logging.INFO, logger="eva_dist.store.local")
    store.publish(ONE, "team/name", "v1", builder("one"))
    store.publish(ONE, "team/name", "v1", refuse_to_build)
    assert caplog.messages == []
    published = store.publish(TWO, "team/name", "v1", builder("two"))
    assert [f"team/name/v1 moved from {ONE} to {TWO}" in message for message in caplog.messages] == [True]
    assert (published.folder / "eva_state_dict.safetensors").read_text() == "two"
    back = store.point(ONE, "team/name", "v1")
    assert back.manifest["text"] == "one" and os.readlink(back.folder).endswith(ONE)


def test_point_wants_a_snapshot(store, root):
    with pytest.raises(ArtifactNotFoundError, match=ONE):
        store.point(ONE, "team/name", "v1")
    assert not (root / "team").exists()


# --- what goes wrong ---


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom("x"), KeyboardInterrupt(), SystemExit(1)])
def test_whatever_build_raises_passes_through_and_leaves_nothing(store, root, error):
    def build(folder):
        builder()(folder)
        raise error

    with pytest.raises(type(error)):
        store.publish(ONE, "team/name", "v1", build)
    assert_nothing_visible(root)


def test_a_full_disk_in_build(store, root, monkeypatch):
    def no_space(path, content, *args, **kwargs):
        with open(path, "w") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(StoreError, match=r"store\.url=file://.*No space left on device.*make room"):
        store.publish(ONE, "team/name", "v1", builder())
    monkeypatch.undo()
    assert_nothing_visible(root)


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename"])
def test_a_file_system_that_refuses_leaves_nothing(store, root, monkeypatch, call):
    build = builder()

    def build_then_break(folder):
        manifest = build(folder)
        monkeypatch.setattr(os, call, refuse)
        return manifest

    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(StoreError, match=r"store\.url=.*Input/output error"):
        store.publish(ONE, "team/name", "v1", build_then_break)
    monkeypatch.undo()
    assert_nothing_visible(root)


@pytest.mark.parametrize("call", ["symlink", "replace"])
def test_a_link_that_fails_keeps_the_snapshot_for_the_next_run(store, root, monkeypatch, call):
    """The snapshot is complete by then and cost hours; only the revision is not there."""

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StoreError, match=r"cannot point team/name/v1.*No space left"):
        store.publish(ONE, "team/name", "v1", builder())
    monkeypatch.undo()
    assert not (root / "team").exists() and list((root / ".incoming").iterdir()) == []
    assert store.publish(ONE, "team/name", "v1", refuse_to_build).folder.is_dir()


def test_a_failed_overwrite_leaves_the_old_one(store, root, monkeypatch):
    folder = store.publish(ONE, "team/name", "v1", builder("old")).folder
    rename = os.rename

    def refuse_new(source, target):
        if target == root / "snapshots" / ONE and not (root / "snapshots" / ONE).exists():
            monkeypatch.undo()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_new)
    with pytest.raises(StoreError, match="Input/output error"):
        store.publish(ONE, "team/name", "v1", builder("new"), overwrite=True)
    assert (folder / "eva_state_dict.safetensors").read_text() == "old"
    assert list((root / ".incoming").iterdir()) == []


_PUBLISH = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from test_local_store import ONE, builder
from eva_dist.store import files, local

def stop(*args):
    print("stopped", flush=True)
    time.sleep(60)

stage = sys.argv[2]
if stage == "rename":
    local.rename_if_free = stop
elif stage == "link":
    local.replace_link = stop

def build(folder):
    manifest = builder()(folder)
    if stage == "build":
        (folder / "manifest.json").write_text("{{")
        stop()
    return manifest

local.LocalStore(sys.argv[1]).publish(ONE, "team/name", "v1", build)
"""


@pytest.mark.parametrize("stage", ["build", "rename", "link"])
def test_a_killed_publisher_leaves_nothing_visible_and_the_next_one_publishes(store, root, stage):
    code = _PUBLISH.format(here=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root), stage], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGKILL)
    assert not (root / "team").exists()
    assert (store.find(ONE) is not None) is (stage == "link")
    published = store.publish(ONE, "team/name", "v1", refuse_to_build if stage == "link" else builder())
    assert (published.folder / "plots" / "ranks.png").read_text() == "png"


def test_leftovers_of_the_killed_are_removed_a_day_later(store, root):
    old, young = root / ".incoming" / "old", root / ".incoming" / "young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "half").write_text("x")
    os.symlink("nowhere", root / ".incoming" / "link")
    day_ago = time.time() - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    os.utime(root / ".incoming" / "link", (day_ago, day_ago), follow_symlinks=False)
    store.publish(ONE, "team/name", "v1", builder())
    assert list((root / ".incoming").iterdir()) == [young]


def test_what_is_no_revision_is_not_replaced(store, root):
    mine = root / "team" / "name" / "v1"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match=r"v1 is not a symlink.*artifact\.revision"):
        store.publish(ONE, "team/name", "v1", refuse_to_build)
    store.publish(ONE, "team/name", "v2", builder())
    with pytest.raises(StoreError, match="not a symlink"):
        store.point(ONE, "team/name", "v1")
    assert (mine / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("fingerprint", "repo_id", "revision", "field"),
    [
        ("../../etc/x", "team/name", "v1", "fingerprint"),
        ("ABCDEF0123", "team/name", "v1", "fingerprint"),
        ("", "team/name", "v1", "fingerprint"),
        (ONE + "\n", "team/name", "v1", "fingerprint"),
        (ONE, "../name", "v1", "repo_id"),
        (ONE, "team/..", "v1", "repo_id"),
        (ONE, "/team/name", "v1", "repo_id"),
        (ONE, "name", "v1", "repo_id"),
        (ONE, "a/b/c", "v1", "repo_id"),
        (ONE, "snapshots/name", "v1", "repo_id"),
        (ONE, ".incoming/name", "v1", "repo_id"),
        (ONE, "team/na\0me", "v1", "repo_id"),
        (ONE, "team/name", "..", "revision"),
        (ONE, "team/name", "a/b", "revision"),
        (ONE, "team/name", "", "revision"),
    ],
)
def test_names_that_leave_the_store_are_refused(store, root, fingerprint, repo_id, revision, field):
    with pytest.raises(StoreError, match=f"{field}=.* must be .*; "):
        store.publish(fingerprint, repo_id, revision, refuse_to_build)
    with pytest.raises(StoreError, match=f"{field}=.* must be .*; "):
        store.point(fingerprint, repo_id, revision)
    assert not root.exists()


def test_a_name_too_long_is_refused_before_the_work(store):
    with pytest.raises(StoreError, match="at most 255 bytes"):
        store.publish(ONE, "team/name", "v" * 300, refuse_to_build)


# --- before any work ---


def test_check_writable_leaves_nothing(store, root):
    store.check_writable()
    assert list(root.iterdir()) == []
    store.publish(ONE, "team/name", "v1", builder())
    before = tree(root)
    store.check_writable()
    assert tree(root) == before


def test_check_writable_under_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"store\.url=.*file/store cannot be written: Not a directory.*store\.url"):
        LocalStore(str(tmp_path / "file" / "store")).check_writable()


@pytest.mark.parametrize("call", ["symlink", "fsync", "rename", "replace"])
def test_check_writable_tries_what_publishing_needs(store, root, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StoreError, match="cannot be written: Read-only file system"):
        store.check_writable()
    assert list(root.iterdir()) == []


# --- races ---


def test_two_publishers_of_one_fingerprint(store, root):
    """Both have built before either renames: one wins, the other takes what is there."""
    meeting = threading.Barrier(2, timeout=30)
    results = {}

    def publish(text):
        def build(folder):
            manifest = builder(text)(folder)
            meeting.wait()
            return manifest

        results[text] = store.publish(ONE, "team/name", text, build)

    threads = [threading.Thread(target=publish, args=(text,)) for text in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = (root / "snapshots" / ONE / "eva_state_dict.safetensors").read_text()
    assert {published.manifest["text"] for published in results.values()} == {winner}
    assert results.keys() == {"a", "b"} and all(published.folder.is_dir() for published in results.values())
    assert list((root / ".incoming").iterdir()) == []


def test_many_overwriters_leave_one_whole_artifact(store, root):
    errors = []

    def publish(number):
        try:
            for _ in range(5):
                store.publish(ONE, "team/name", "v1", builder(str(number)), overwrite=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = store.find(ONE)
    assert found is not None
    assert (root / "team/name/v1/eva_state_dict.safetensors").read_text() == found.manifest["text"]
    assert list((root / ".incoming").iterdir()) == []
