"""What a person finds in a folder store, and what a file system can do to it."""

import errno
import os
import pickle
import shutil
import stat
import time
from pathlib import Path

import pytest

from eva_dist.errors import IntegrityError, StoreError
from eva_dist.store.folder_view import FolderView
from eva_dist.store.store import Store
from eva_dist.store.store_reader import blob_key
from tests.store.artifacts import FILES, ONE, TWO, builder, refuse_to_build


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root) -> Store:
    return Store(root.as_uri())


def left_in(root: Path) -> set[str]:
    """Every file and link in the store."""
    return (
        {str(p.relative_to(root)) for p in root.rglob("*") if p.is_symlink() or p.is_file()} if root.exists() else set()
    )


# --- what a person sees ---


def test_a_revision_is_a_folder_of_plain_files_wherever_the_store_is_moved(store, root, tmp_path):
    published = store.publish(ONE, "team/name", "v1", builder())
    assert published.folder == root / "team" / "name" / "v1" and published.url == published.folder.as_uri()
    assert os.readlink(published.folder) == f"../../snapshots/{ONE}"
    assert store.find(ONE).folder == root / "snapshots" / ONE
    moved = root.rename(tmp_path / "elsewhere")
    folder = moved / "team" / "name" / "v1"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {*FILES, "manifest.json"}
    shutil.copytree(folder, tmp_path / "copy")
    assert (tmp_path / "copy" / FILES[1]).read_text() == "png" and not (tmp_path / "copy" / FILES[1]).is_symlink()


def test_the_files_cost_nothing(store, root):
    folder = store.publish(ONE, "team/name", "v1", builder()).folder
    blob = root / blob_key(store.snapshot(ONE).entry(FILES[0]).sha256)
    assert (folder / FILES[0]).samefile(blob)


def test_a_file_system_without_hard_links_gets_copies(store, root, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("eva_dist.store.folder_view.os.link", refuse)
    folder = store.publish(ONE, "team/name", "v1", builder()).folder
    assert (folder / FILES[0]).read_text() == "tensors" and (folder / FILES[0]).stat().st_nlink == 1


def test_files_have_the_usual_permissions(store):
    """A store is for a team: a private temporary folder must not become a private snapshot."""
    before = os.umask(0o022)
    try:
        folder = store.publish(ONE, "team/name", "v1", builder()).folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / FILES[0]).stat().st_mode) == 0o444  # an edit would reach all artifacts


def test_the_folders_come_again_with_the_next_publish(store, root):
    store.publish(ONE, "team/name", "v1", builder())
    shutil.rmtree(root / "team")
    shutil.rmtree(root / "objects" / "trees")
    folder = store.publish(ONE, "team/name", "v1", refuse_to_build).folder
    assert (folder / FILES[0]).read_text() == "tensors"


def test_overwrite_and_moves_replace_whole_folders(store, root):
    """Whoever has opened the folder reads the old artifact on, to its end."""
    folder = store.publish(ONE, "team/name", "v1", builder("old")).folder
    reader = os.open(folder, os.O_RDONLY)
    store.publish(ONE, "team/name", "v1", builder("new"), overwrite=True)
    assert (folder / FILES[0]).read_text() == "new"
    with open(os.open(FILES[0], os.O_RDONLY, dir_fd=reader)) as file:
        assert file.read() == "old"
    os.close(reader)
    store.publish(TWO, "team/name", "v1", builder("two"))
    assert (folder / FILES[0]).read_text() == "two"


def test_remove_takes_the_link_and_empty_folders(store, root):
    store.publish(ONE, "team/name", "v1", builder())
    store.publish(ONE, "team/name", "v2", builder())
    store.remove("team/name", "v1")
    assert not os.path.lexists(root / "team/name/v1") and (root / "team/name/v2").is_dir()
    store.remove("team/name", "v2")
    assert not (root / "team").exists() and (root / "snapshots" / ONE).is_dir()


def test_paths_and_urls_are_the_same_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a b"
    assert Store("a b").root == Store(str(folder)).root == Store(folder.as_uri()).root == folder
    Store("a b").publish(ONE, "team/name", "v1", builder())
    assert Store(folder.as_uri()).find(ONE) is not None


def test_two_that_move_a_name_at_once_leave_folder_and_name_in_agreement(store, root, monkeypatch):
    """The other publisher is done between our pointer and our link."""
    store.publish(ONE, "team/name", "v1", builder("one"))
    store.publish(TWO, "team/other", "v1", builder("two"))
    point = FolderView.point

    def other_first(view, fingerprint, repo_id, revision):
        monkeypatch.setattr(FolderView, "point", point)
        Store(store.url).point(TWO, "team/name", "v1")
        return point(view, fingerprint, repo_id, revision)

    monkeypatch.setattr(FolderView, "point", other_first)
    store.point(ONE, "team/name", "v1")
    assert store.fingerprint_of("team/name", "v1") == TWO
    assert (root / "team/name/v1" / FILES[0]).read_text() == "two"


def test_a_folder_that_another_removes_meanwhile_is_made_again(store, root, monkeypatch):
    symlink = os.symlink

    def remove_first(target, link):
        symlink(target, link)
        shutil.rmtree(root / "team", ignore_errors=True)

    monkeypatch.setattr(os, "symlink", remove_first)
    store.publish(ONE, "team/name", "v1", builder("one"))
    assert (root / "team/name/v1" / FILES[0]).read_text() == "one"


def test_an_edit_by_hand_is_refused_to_others_than_root(store):
    """The files are shared with all artifacts that have the same ones."""
    folder = store.publish(ONE, "team/name", "v1", builder()).folder
    assert not any((folder / name).stat().st_mode & 0o222 for name in FILES)


def test_a_colleagues_file_is_made_young_too(store, root, monkeypatch):
    store.publish(ONE, "team/name", "v1", builder())

    def refuse(path):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    path = root / "objects/manifests" / f"{ONE}.json"
    os.utime(path, (0, 0))
    monkeypatch.setattr(os, "utime", refuse)
    store.remove("team/name", "v1")
    assert path.stat().st_mtime > 0 and store.find(ONE) is not None


# --- what is not ours ---


@pytest.mark.parametrize("place", ["team/name/v1", f"snapshots/{ONE}"])
def test_what_is_no_link_is_not_replaced(store, root, place):
    """A folder of somebody's, or a snapshot of an earlier version of the store."""
    mine = root / place
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match=r"is not a symlink.*artifact\.revision"):
        store.publish(ONE, "team/name", "v1", refuse_to_build)
    store.publish(TWO, "team/name", "v2", builder("two"))
    with pytest.raises(StoreError, match="is not a symlink"):
        store.point(TWO, "team/name", "v1") if place.startswith("team") else store.publish(ONE, "a/b", "c", builder())
    assert (mine / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize("level", ["blob", "folder", "manifest", "revision"])
def test_symlinks_inside_the_objects_are_not_followed(store, root, tmp_path, level):
    """Whoever can drop a link into a shared store must not make others publish their files by it."""
    store.publish(ONE, "team/name", "v1", builder())
    entry = store.snapshot(ONE).entry(FILES[0])
    blob = root / blob_key(entry.sha256)
    secret = tmp_path / "secret"
    if level == "folder":
        shutil.move(blob.parent, secret)
        blob.parent.symlink_to(secret)
    else:
        target = {
            "blob": blob,
            "manifest": root / "objects/manifests" / f"{ONE}.json",
            "revision": root / "objects/revisions/team/name/v1.json",
        }[level]
        shutil.move(target, secret)
        target.symlink_to(secret)
    if level == "revision":
        assert Store(store.url).revisions_and_broken() == ([], ["objects/revisions/team/name/v1.json"])
        return
    with pytest.raises(IntegrityError, match="reached over a symlink"):
        store.snapshot(ONE) if level == "manifest" else store.read(entry)
    if level in ("blob", "folder"):
        with pytest.raises(IntegrityError, match="reached over a symlink"):
            store.local_path(entry)


def test_the_root_itself_may_be_a_link(store, root, tmp_path):
    store.publish(ONE, "team/name", "v1", builder())
    (tmp_path / "alias").symlink_to(root)
    alias = Store(str(tmp_path / "alias"))
    assert alias.read(alias.snapshot(ONE).entry(FILES[0])) == b"tensors"


# --- what a file system refuses ---


def test_a_full_disk_in_build(store, root, monkeypatch):
    def no_space(path, content, *args, **kwargs):
        with open(path, "w") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(StoreError, match=r"store\.url=file://.*No space left on device.*make room"):
        store.publish(ONE, "team/name", "v1", builder())
    monkeypatch.undo()
    assert left_in(root) == set() and store.find(ONE) is None


@pytest.mark.parametrize("call", ["fsync", "rename", "link", "symlink", "replace"])
def test_a_file_system_that_refuses_shows_nothing_half(store, root, monkeypatch, call):
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
    assert not os.path.lexists(root / "team") and [*(root / ".incoming").iterdir()] == [] and store.revisions() == []
    folder = store.publish(ONE, "team/name", "v1", builder()).folder
    assert (folder / FILES[0]).read_text() == "tensors"


def test_reading_creates_nothing(store, root):
    assert store.find(ONE) is None and store.revisions() == [] and not root.exists()


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"store\.url=.*file/store cannot be written: .*choose another store\.url"):
        Store(str(tmp_path / "file" / "store")).check_writable()


@pytest.mark.parametrize("call", ["symlink", "fsync", "rename", "replace"])
def test_check_writable_tries_what_publishing_needs(store, root, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StoreError, match="cannot be written: Read-only file system"):
        store.check_writable()
    assert left_in(root) == set()


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


def test_a_store_can_be_sent_to_another_process(tmp_path):
    """As a server that is started by `multiprocessing` gets it."""
    store = pickle.loads(pickle.dumps(Store(str(tmp_path))))
    assert store.root == tmp_path and store.revisions() == []
