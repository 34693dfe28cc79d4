"""A snapshot: one artifact as its manifest lists it. Bytes in, checked record out; no network and no store.

A manifest may come from anywhere, so nothing in it is believed before it is checked: its paths become files on the
reader's disk, and its hashes become keys in a store.
"""

import errno
import hashlib
import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any

from eva_dist.errors import ArtifactNotFoundError, IntegrityError
from eva_dist.hashing import sha256_of_file

MANIFEST_FILE = "manifest.json"
SEAL = "manifest_sha256"

LARGEST_MANIFEST = 64 << 20
PART_BYTES = 8 << 20
"""How much of a file is read or sent at once."""

_MOST_FILES = 10_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[^\x00-\x1f\x7f/\\:*?\"<>|]{1,255}")
"""What every file system takes as a name, Windows' too."""


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact: its path in the artifact's folder, with `/`, and what its bytes are."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Snapshot:
    """An artifact as its manifest lists it.

    Attributes:
        content: `manifest.json`, to the byte.
        manifest: the same, parsed; only what `files` says of it is checked.
        files: by path, sorted; the manifest itself is among them.
    """

    content: bytes
    manifest: dict[str, Any]
    files: Mapping[str, FileEntry]

    @property
    def fingerprint(self) -> str:
        """What names the artifact (`plan.fingerprint`); empty if the manifest gives none."""
        return str(self.manifest.get("fingerprint", ""))

    @cached_property
    def commit(self) -> str:
        """The first 40 digits of the manifest's sha256: it names these very bytes, as a commit of the Hub does."""
        return self.files[MANIFEST_FILE].sha256[:40]

    @property
    def changed(self) -> str | None:
        """What is wrong if the manifest is not as it was written; None if it is, or is too old to tell."""
        if SEAL not in self.manifest or self.manifest[SEAL] == sealed(self.manifest)[SEAL]:
            return None
        return f"{MANIFEST_FILE} has changed since it was written: its {SEAL} is not that of its content"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def entry(self, path: str) -> FileEntry:
        """Return the file with this path; `ArtifactNotFoundError` names those that there are."""
        found = self.files.get(path)
        if found is None:
            raise ArtifactNotFoundError(f"the artifact has no {path!r}; it has {', '.join(self.files)}")
        return found


@dataclass(frozen=True)
class Revision:
    """A name and the artifact that it points to since `moved` (UTC)."""

    repo_id: str
    revision: str
    fingerprint: str
    moved: datetime

    @property
    def name(self) -> str:
        """The name as it is typed, `namespace/name@revision`."""
        return f"{self.repo_id}@{self.revision}"


def read_snapshot(content: bytes, fingerprint: str | None = None) -> Snapshot:
    """Return the snapshot that a manifest describes.

    Args:
        content: of `manifest.json`.
        fingerprint: the one that the manifest must have, if it says any.

    Raises:
        IntegrityError: it is no manifest, lists files outside its folder, hashes or sizes that are none, or belongs to
            another artifact.
    """
    if len(content) > LARGEST_MANIFEST:
        raise IntegrityError(f"{MANIFEST_FILE} has {len(content)} bytes, more than {LARGEST_MANIFEST}; it is none")
    try:
        manifest = json.loads(content)
        listed = manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{MANIFEST_FILE} is no manifest ({type(error).__name__}: {error})") from error
    if len(listed) > _MOST_FILES:
        raise IntegrityError(f"{MANIFEST_FILE} lists {len(listed)} files, more than {_MOST_FILES}; it is none of ours")
    if fingerprint is not None and manifest.get("fingerprint", fingerprint) != fingerprint:
        raise IntegrityError(f"{MANIFEST_FILE} is of the artifact {manifest['fingerprint']!r}, not of {fingerprint}")
    entries = [_read_entry(path, described) for path, described in listed]
    entries.append(FileEntry(MANIFEST_FILE, hashlib.sha256(content).hexdigest(), len(content)))
    files = {entry.path: entry for entry in sorted(entries, key=lambda entry: entry.path)}
    _refuse_clashes(entries)
    return Snapshot(content, manifest, files)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the sha256 of all else that it says, keys sorted and without blanks.

    The manifest vouches for every other file; this is what it says of itself. It tells damage, not forgery.
    """
    content = {key: value for key, value in manifest.items() if key != SEAL}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return content | {SEAL: hashlib.sha256(text.encode()).hexdigest()}


def folder_snapshot(folder: Path, fingerprint: str | None = None) -> Snapshot:
    """Return the snapshot of the artifact in `folder`; its files are not looked at.

    Raises:
        ArtifactNotFoundError: there is no manifest.
        IntegrityError: see `read_snapshot`.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactNotFoundError(
            f"no artifact at {folder}: it has no {MANIFEST_FILE}; check the path, repo_id and revision "
            "(the `url` that the run printed)"
        ) from error
    try:
        return read_snapshot(content, fingerprint)
    except IntegrityError as error:
        raise IntegrityError(f"{folder}: {error}") from error


def lacking(folder: Path, snapshot: Snapshot) -> list[str]:
    """Return the files of a snapshot that are not in `folder` in their size; content is not looked at."""
    return [
        entry.path
        for entry in snapshot.files.values()
        if not (path := folder / entry.path).is_file() or path.stat().st_size != entry.size
    ]


def part_ranges(size: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds [start, end) of the parts in which a file of that size is read."""
    for start in range(0, size, PART_BYTES):
        yield start, min(start + PART_BYTES, size)


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; `OSError` for what is no regular file: opening a pipe would wait for its writer."""
    _refuse_irregular(path)
    return path.open("rb")


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a regular file; `OSError` for a pipe, which would never end."""
    _refuse_irregular(path)
    return sha256_of_file(path)


def _refuse_irregular(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _read_entry(path: object, described: object) -> FileEntry:
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or not all(_is_portable_name(part) for part in parts):
        raise IntegrityError(
            f"{MANIFEST_FILE} lists {path!r}, must be a plain path inside the artifact's folder; do not trust it"
        )
    sha256, size = (described.get("sha256"), described.get("size")) if isinstance(described, dict) else (None, None)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise IntegrityError(f"{MANIFEST_FILE}: sha256 of {path!r} is {sha256!r}, must be 64 lower-case hex digits")
    if type(size) is not int or not 0 <= size < 1 << 50:
        raise IntegrityError(f"{MANIFEST_FILE}: size of {path!r} is {size!r}, must be a number of bytes")
    return FileEntry("/".join(parts), sha256, size)


def _is_portable_name(part: str) -> bool:
    # a name that ends in a dot or a blank is another one on Windows; surrogates are no UTF-8
    plain = _PART.fullmatch(part) is not None and part not in (".", "..") and part == part.rstrip(". ")
    return plain and part.isprintable() and len(part.encode("utf-8", "replace")) <= 255


def _refuse_clashes(entries: list[FileEntry]) -> None:
    """Raise if a file is listed twice, or is a folder of another one: file systems without case count as one."""
    seen = {entry.path.casefold() for entry in entries}
    folders = {
        "/".join(parts[:depth])
        for parts in (entry.path.casefold().split("/") for entry in entries)
        for depth in range(1, len(parts))
    }
    if len(seen) < len(entries) or seen & folders:
        raise IntegrityError(f"{MANIFEST_FILE} lists a path twice, itself, or a file as a folder; do not trust it")
