"""Pull an artifact into a folder of its own: files appear whole and verified, and an interrupted pull goes on."""

import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from eva_dist.errors import ConfigError, IntegrityError
from eva_dist.hashing import sha256_of_file
from eva_dist.store.artifact_reader import ArtifactReader, NoRangesError
from eva_dist.store.durable_files import translate_os_errors
from eva_dist.store.snapshot import MANIFEST_FILE, PART_BYTES, FileEntry, part_ranges
from eva_dist.store.transfer_progress import counting

_UNFINISHED = ".incomplete"


@dataclass(frozen=True)
class Pulled:
    """What a pull did: how many files and bytes are in the folder now, and how many bytes had been there before."""

    files: int
    size: int
    kept: int


def pull_artifact(reader: ArtifactReader, folder: Path, names: Collection[str] | None = None) -> Pulled:
    """Download files of an artifact into a folder that is its own; files that are there and right are kept.

    Args:
        reader: the opened artifact.
        folder: new, empty, or one that a pull of this artifact has begun.
        names: of the files; the manifest comes always. None: all.

    Raises:
        ConfigError: the folder holds something else.
        IntegrityError: what arrived differs from the manifest; files that were right stay.
        StoreError: the artifact cannot be reached, or the folder cannot be written.
    """
    wanted = None if names is None else {*names, MANIFEST_FILE}
    entries = [entry for name, entry in reader.snapshot.files.items() if wanted is None or name in wanted]
    _refuse_foreign_folder(folder, reader)
    size = sum(entry.size for entry in entries)
    kept = 0
    with counting(f"pulling {reader.where}", size, None) as arrived, _translate_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # First the manifest: it says whose folder this is when the pull is taken up again.
        for entry in sorted(entries, key=lambda entry: entry.path != MANIFEST_FILE):
            if _is_there(folder / entry.path, entry):
                kept += entry.size
                arrived(entry.size)
            else:
                _download_file(reader, entry, folder / entry.path, arrived)
    return Pulled(len(entries), size, kept)


def _refuse_foreign_folder(folder: Path, reader: ArtifactReader) -> None:
    """Raise `ConfigError` unless the folder is new, empty, or this artifact's: nobody's files are written over."""
    with _translate_write_errors(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise ConfigError(f"FOLDER={folder} is a file; name a folder")
        manifest = folder / MANIFEST_FILE
        if manifest.is_file() and manifest.read_bytes() == reader.snapshot.content:
            return
        if manifest.exists() or any(not entry.name.endswith(_UNFINISHED) for entry in folder.iterdir()):
            holds = "another artifact" if manifest.exists() else "other files"
            raise ConfigError(f"FOLDER={folder} holds {holds}; name a new folder, or remove it")


def _download_file(reader: ArtifactReader, entry: FileEntry, target: Path, arrived: Callable[[int], None]) -> None:
    """Download one file beside its place, verify it, and put it there by one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}{_UNFINISHED}")
    digest = hashlib.sha256()
    try:
        with unfinished.open("wb") as file:
            for part in _read_parts(reader, entry):
                digest.update(part)
                file.write(part)
                arrived(len(part))
        if digest.hexdigest() != entry.sha256:
            raise IntegrityError(
                f"{entry.path} of {reader.where} has sha256 {digest.hexdigest()}, but its manifest says "
                f"{entry.sha256}; pull again; if it stays so, ask who published it to do so again"
            )
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_parts(reader: ArtifactReader, entry: FileEntry) -> Iterator[bytes]:
    """Yield the bytes of a file in parts, straight from where it lies: a copy in the cache would double the disk."""
    if entry.path == MANIFEST_FILE:
        yield reader.snapshot.content
        return
    received = 0
    try:
        for start, end in part_ranges(entry.size):
            yield reader.read_range(entry.path, start, end)
            received = end
    except NoRangesError:  # this server sends whole files alone: they go over the cache
        with (reader.fetch([entry.path], False) / entry.path).open("rb") as file:
            file.seek(received)
            while part := file.read(PART_BYTES):
                yield part


def _is_there(path: Path, entry: FileEntry) -> bool:
    """Tell whether the file is there already, with the bytes that the manifest promises."""
    return path.is_file() and path.stat().st_size == entry.size and sha256_of_file(path) == entry.sha256


def _translate_write_errors(folder: Path) -> AbstractContextManager[None]:
    return translate_os_errors(f"{folder} cannot be written", "make room or grant the rights, and pull again")
