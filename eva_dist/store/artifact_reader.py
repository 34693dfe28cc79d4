"""An artifact that has been found: its manifest is read and checked, its files come when they are asked for."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path

from eva_dist.errors import IntegrityError, StoreError
from eva_dist.hashing import open_regular, sha256_of_file
from eva_dist.store.cache import Cache, told
from eva_dist.store.progress_bar import Progress, counting
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry, Snapshot

REMEDY = "copy the artifact again, or recompute it with artifact.overwrite=true"


class Opened(ABC):
    """An artifact somewhere.

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
    def _read_range(self, name: str, start: int, end: int) -> bytes:
        """Return a part of a file that is not on this machine."""

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
            return _part(self.cache.folder(self.snapshot) / name, start, end)
        return self._read_range(name, start, end) if start < end else b""

    def is_here(self, name: str) -> bool:
        """Whether the file is on this machine, whole, so that nothing need travel."""
        return self.cache is None or self.cache.holds(self.snapshot, self.entry(name))

    def read(self, name: str, progress: Progress = None) -> bytes:
        """Return the bytes of a file, those that were hashed: nobody can swap the file in between."""
        entry = self.entry(name)
        path = self.fetch([name], progress) / name
        content = read_file(path)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise differs(path, hashlib.sha256(content).hexdigest(), entry)
        return content

    def entry(self, name: str) -> FileEntry:
        """Return what the manifest says of a file; `IntegrityError` if it is not listed."""
        found = self.snapshot.files.get(name)
        if found is None:
            raise IntegrityError(f"{self.where}: its {MANIFEST_FILE} does not list {name}; {REMEDY}")
        return found

    def entries(self, names: Collection[str] | None) -> list[FileEntry]:
        """Return what the manifest says of files; None: of all."""
        return list(self.snapshot.files.values()) if names is None else [self.entry(name) for name in names]


class OpenedFolder(Opened):
    """An artifact in its own folder, which is read where it lies."""

    def __init__(self, folder: Path, snapshot: Snapshot) -> None:
        super().__init__(snapshot, str(folder))
        self.folder = folder

    def fetch(self, names: Collection[str] | None = None, progress: Progress = None) -> Path:
        """Verify the files; return the folder itself."""
        for entry in self.entries(names):
            path = self.folder / entry.path
            try:
                actual = sha256_of_file(path)
            except OSError as error:
                raise missing(path, error) from error
            if actual != entry.sha256:
                raise differs(path, actual, entry)
        return self.folder

    def read(self, name: str, progress: Progress = None) -> bytes:
        """Read once, and hash what was read."""
        entry = self.entry(name)
        content = read_file(self.folder / name)
        actual = hashlib.sha256(content).hexdigest()
        if actual != entry.sha256:
            raise differs(self.folder / name, actual, entry)
        return content

    def _read_range(self, name: str, start: int, end: int) -> bytes:
        return _part(self.folder / name, start, end)


class OpenedElsewhere(Opened):
    """An artifact whose files are brought into the cache."""

    cache: Cache

    def __init__(self, snapshot: Snapshot, where: str, cache: Cache) -> None:
        super().__init__(snapshot, where, cache)

    @abstractmethod
    def _chunks(self, entry: FileEntry) -> Iterator[bytes]:
        """Yield the bytes of a file."""

    def fetch(self, names: Collection[str] | None = None, progress: Progress = None) -> Path:
        """Bring what is missing into the cache; the manifest always."""
        self.cache.keep_manifest(self.snapshot)
        missing = [entry for entry in self.entries(names) if not self.cache.holds(self.snapshot, entry)]
        with counting(self.where, sum(entry.size for entry in missing), progress) as tell:
            for entry in missing:
                self.cache.receive(self.snapshot, entry, told(self._chunks(entry), tell), self.where)
        return self.cache.folder(self.snapshot)


class NoRangesError(StoreError):
    """A server gave the whole of a file that it was asked a part of."""


def read_file(path: Path) -> bytes:
    """Return a file's bytes; `IntegrityError` if it is not there."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise missing(path, error) from error


def _part(path: Path, start: int, end: int) -> bytes:
    try:
        with open_regular(path) as file:
            file.seek(start)
            content = file.read(end - start)
    except OSError as error:
        raise missing(path, error) from error
    if len(content) != end - start:
        raise IntegrityError(f"{path} ends before byte {end}; {REMEDY}")
    return content


def missing(path: Path, error: OSError) -> IntegrityError:
    """Say that a file of an artifact cannot be read."""
    if isinstance(error, FileNotFoundError):
        return IntegrityError(f"{path} is missing though the manifest lists it; {REMEDY}")
    return IntegrityError(f"{path} cannot be read: {error.strerror or error}; {REMEDY}")


def differs(path: Path | str, actual: str, entry: FileEntry) -> IntegrityError:
    """Say that a file is not the one of the manifest."""
    return IntegrityError(f"{path} has sha256 {actual}, but its manifest says {entry.sha256}; {REMEDY}")
