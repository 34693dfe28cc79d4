"""Read one artifact, wherever it lies: its manifest has been read and checked, its files come when asked for.

`FolderArtifactReader` reads a folder of this machine where it lies. The others bring files into the cache first
(`FetchingArtifactReader`): from a store (`store_artifact.py`), or from a Hub (`hub_artifact.py`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from eva_dist.errors import IntegrityError, StoreError
from eva_dist.hashing import open_regular, sha256_of_file
from eva_dist.store.cache import Cache, report_sizes
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry, Snapshot
from eva_dist.store.transfer_progress import Progress, counting

REMEDY = "copy the artifact again, or recompute it with artifact.overwrite=true"


class ArtifactReader(ABC):
    """One artifact, opened for reading.

    Attributes:
        snapshot: what its manifest says.
        where: where it lies, to show.
        cache: what is kept of it on this machine; None: it lies here itself.
    """

    def __init__(self, snapshot: Snapshot, where: str, cache: Cache | None = None) -> None:
        self.snapshot = snapshot
        self.where = where
        self.cache = cache

    @abstractmethod
    def fetch(self, names: Collection[str] | None = None, progress: Progress = None) -> Path:
        """Return a local folder that holds these files, verified; None: all.

        Raises:
            IntegrityError: a file is missing, not in the manifest, or differs from it; nothing of it is kept.
            StoreError: the place cannot be reached, or the cache cannot be written.
        """

    @abstractmethod
    def _read_remote_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of a file from where the artifact lies; `read_range` has checked the bounds."""

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of a file. A part cannot be verified by the manifest's sha256: the caller must.

        Raises:
            IntegrityError: the file has fewer bytes than its manifest says.
            NoRangesError: the place gives files as a whole only.
            StoreError: the place cannot be reached.
        """
        entry = self.entry(name)
        if not 0 <= start <= end <= entry.size:
            raise IntegrityError(f"{self.where}: {name} has {entry.size} bytes, none from {start} to {end}; {REMEDY}")
        if self.cache is not None and self.is_here(name):
            return _read_part(self.cache.folder(self.snapshot) / name, start, end)
        return self._read_remote_range(name, start, end) if start < end else b""

    def is_here(self, name: str) -> bool:
        """Tell whether the whole file is on this machine already, so that nothing need be downloaded."""
        return self.cache is None or self.cache.holds(self.snapshot, self.entry(name))

    def read(self, name: str, progress: Progress = None) -> bytes:
        """Return the bytes of a file. The bytes returned are the ones hashed: nobody can swap the file in between."""
        entry = self.entry(name)
        path = self.fetch([name], progress) / name
        return _read_verified(path, entry)

    def entry(self, name: str) -> FileEntry:
        """Return what the manifest says of a file; `IntegrityError` if it is not listed."""
        found = self.snapshot.files.get(name)
        if found is None:
            raise IntegrityError(f"{self.where}: its {MANIFEST_FILE} does not list {name}; {REMEDY}")
        return found

    def entries(self, names: Collection[str] | None) -> list[FileEntry]:
        """Return what the manifest says of these files; None: of all."""
        return list(self.snapshot.files.values()) if names is None else [self.entry(name) for name in names]


class FolderArtifactReader(ArtifactReader):
    """An artifact in a folder of this machine, read where it lies."""

    def __init__(self, folder: Path, snapshot: Snapshot) -> None:
        super().__init__(snapshot, str(folder))
        self.folder = folder

    def fetch(self, names: Collection[str] | None = None, progress: Progress = None) -> Path:
        """Verify the files; return the folder itself."""
        for entry in self.entries(names):
            path = self.folder / entry.path
            with _reading_file(path):
                actual = sha256_of_file(path)
            _refuse_other_bytes(path, actual, entry)
        return self.folder

    def read(self, name: str, progress: Progress = None) -> bytes:
        """Read the file once and hash what was read, where `fetch` first would read it twice."""
        return _read_verified(self.folder / name, self.entry(name))

    def _read_remote_range(self, name: str, start: int, end: int) -> bytes:
        return _read_part(self.folder / name, start, end)


class FetchingArtifactReader(ArtifactReader):
    """An artifact that lies elsewhere; its files are downloaded into the cache."""

    cache: Cache

    @abstractmethod
    def _download_file(self, entry: FileEntry) -> Iterator[bytes]:
        """Yield the bytes of a file, piece by piece."""

    def fetch(self, names: Collection[str] | None = None, progress: Progress = None) -> Path:
        """Download what is missing into the cache, and the manifest always."""
        self.cache.keep_manifest(self.snapshot)
        missing = [entry for entry in self.entries(names) if not self.cache.holds(self.snapshot, entry)]
        with counting(self.where, sum(entry.size for entry in missing), progress) as arrived:
            for entry in missing:
                # The cache hashes what arrives, and keeps nothing of a file that is not the manifest's.
                self.cache.receive(self.snapshot, entry, report_sizes(self._download_file(entry), arrived), self.where)
        return self.cache.folder(self.snapshot)


class NoRangesError(StoreError):
    """A server sent the whole of a file when asked for a part of it."""


def _read_verified(path: Path, entry: FileEntry) -> bytes:
    with _reading_file(path), open_regular(path) as file:
        content = file.read()
    _refuse_other_bytes(path, hashlib.sha256(content).hexdigest(), entry)
    return content


def _read_part(path: Path, start: int, end: int) -> bytes:
    with _reading_file(path), open_regular(path) as file:
        file.seek(start)
        content = file.read(end - start)
    if len(content) != end - start:
        raise IntegrityError(f"{path} ends before byte {end}; {REMEDY}")
    return content


def _refuse_other_bytes(path: Path, actual: str, entry: FileEntry) -> None:
    """Raise `IntegrityError` unless `actual` is the sha256 that the manifest gives for the file."""
    if actual != entry.sha256:
        raise IntegrityError(f"{path} has sha256 {actual}, but its manifest says {entry.sha256}; {REMEDY}")


@contextmanager
def _reading_file(path: Path) -> Iterator[None]:
    """Turn an `OSError` into the `IntegrityError` of a file that is missing or cannot be read."""
    try:
        yield
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        what = "is missing though the manifest lists it" if is_missing else f"cannot be read: {error.strerror or error}"
        raise IntegrityError(f"{path} {what}; {REMEDY}") from error
