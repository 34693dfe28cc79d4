"""File-system steps that survive a crash: files written to the disk, links replaced at once, old entries removed."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path


def replace_link(link: Path, target: str, new: Path) -> None:
    """Make `link` a symlink to `target`, atomically: made at the path `new` and renamed. A failure leaves nothing."""
    try:
        os.symlink(target, new)
        for last in (False, False, True):
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(new, link)
                break
            except FileNotFoundError:  # whoever removed the last other link took the folder away
                if last:
                    raise
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
    """Flush a file, or a folder's entries, to the disk."""
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
