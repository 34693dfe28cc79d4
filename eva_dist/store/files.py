"""File-system steps of a store: durable writes, a rename that never replaces, and what counts as complete."""

import errno
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"


def complete_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest if it is readable and every file that it lists is there in its size, else None.

    Content is not hashed here, which would read gigabytes to answer "is it there"; loading hashes.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        sizes = {name: described["size"] for name, described in manifest["files"].items()}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def rename_if_free(source: Path, target: Path) -> bool:
    """Rename a folder, atomically; False if `target` is there already and not an empty folder."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def replace_link(link: Path, target: str, new: Path) -> None:
    """Make `link` a symlink to `target` by way of `new`, atomically; a failure leaves nothing of it."""
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, new)
        os.replace(new, link)
    except BaseException:
        new.unlink(missing_ok=True)
        for folder in (link.parent, link.parent.parent):
            with suppress(OSError):  # it is not empty: others' revisions are there
                folder.rmdir()
        raise
    sync(link.parent)


def remove_older(folder: Path, seconds: float) -> None:
    """Remove the entries of `folder` that have not changed for `seconds`; what cannot be removed stays."""
    for entry in [*folder.glob("*")]:
        with suppress(OSError):
            if time.time() - entry.lstat().st_mtime < seconds:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def sync(path: Path) -> None:
    """Have the kernel write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder under `folder`, and itself."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
