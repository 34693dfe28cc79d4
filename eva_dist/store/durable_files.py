"""File-system steps that survive a crash: files written to the disk, links replaced at once, old entries removed."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eva_dist.errors import StoreError


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
            if time.time() - entry.lstat().st_mtime >= seconds:
                remove_entry(entry)


def remove_entry(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def translate_os_errors(what: str, remedy: str, names_file: bool = False) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError`: `what` could not be done, the reason, perhaps the file, the remedy."""
    try:
        yield
    except OSError as error:
        file = f" ({error.filename})" if names_file and error.filename else ""
        raise StoreError(f"{what}: {error.strerror or error}{file}; {remedy}") from error


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
