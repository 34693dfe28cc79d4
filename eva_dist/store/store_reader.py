"""Read a store: look up artifacts by fingerprint and by name, and read their files, verified."""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.hashing import sha256_of_file
from eva_dist.store.cache import cache_root
from eva_dist.store.durable_files import translate_os_errors
from eva_dist.store.folder_view import FolderView
from eva_dist.store.name_rules import (
    CHECKPOINTS,
    MAIN,
    OBJECTS,
    SNAPSHOTS,
    check_fingerprint,
    check_names,
    is_commit_or_fingerprint,
    is_fingerprint,
)
from eva_dist.store.objects import Objects, StoredObject
from eva_dist.store.snapshot import (
    LARGEST_MANIFEST,
    MANIFEST_FILE,
    FileEntry,
    Revision,
    Snapshot,
    part_ranges,
    read_snapshot,
)

BLOBS, MANIFESTS, REVISIONS = f"{OBJECTS}/blobs", f"{OBJECTS}/manifests", f"{OBJECTS}/revisions"

_REMEDY = "publish it again: a run with artifact.overwrite=true, or eva-dist push --force from a sound copy"
_REQUESTS_AT_ONCE = 16
_MOST_NAMED = 10
_LARGEST_POINTER = 64 << 10


def blob_key(sha256: str) -> str:
    """Return the key of the blob whose content has that sha256."""
    return f"{BLOBS}/{sha256[:2]}/{sha256}"


def manifest_key(fingerprint: str) -> str:
    """Return the key of an artifact's manifest."""
    return f"{MANIFESTS}/{fingerprint}.json"


def revision_key(repo_id: str, revision: str) -> str:
    """Return the key of the pointer that says which artifact a name means."""
    return f"{REVISIONS}/{repo_id}/{revision}.json"


@dataclass(frozen=True)
class Published:
    """An artifact in the store.

    `url`, and in a folder store `folder`, are the revision's where one was asked for, else the snapshot's.
    """

    url: str
    folder: Path | None
    fingerprint: str
    manifest: dict[str, Any]


class StoreReader:
    """Artifacts under `url`: a folder, `memory://`, or a bucket (`s3://`, `gs://`, `az://`, `abfs://`).

    Attributes:
        url: as given.
        root: the folder of a folder store, else None.
    """

    def __init__(self, url: str) -> None:
        """Touch nothing yet; `StoreError` if `url` can be no store."""
        self.url = url
        self._objects = Objects(url)
        self.root = self._objects.root
        self._folder_view = FolderView(self.root, self._blob_path) if self.root else None
        self._pointers: dict[str, tuple[StoredObject, Revision]] = {}

    def _blob_path(self, sha256: str) -> Path:
        return self._objects.path(blob_key(sha256))

    def __reduce__(self) -> tuple[type["StoreReader"], tuple[str]]:
        """Send a store to another process as its URL: what it keeps open here is opened again there."""
        return type(self), (self.url,)

    # --- names ---

    def revision_url(self, repo_id: str, revision: str) -> str:
        """Return the URL of a revision; `StoreError` for names that leave the store."""
        check_names(repo_id, revision)
        if self._folder_view is not None:
            return self._folder_view.revision(repo_id, revision).as_uri()
        return f"{self.url.rstrip('/')}/{repo_id}@{revision}"

    def snapshot_url(self, fingerprint: str) -> str:
        """Return the URL that stays an artifact's own, wherever its revisions move."""
        check_fingerprint(fingerprint)
        if self._folder_view is not None:
            return self._folder_view.snapshot(fingerprint).as_uri()
        return f"{self.url.rstrip('/')}/{SNAPSHOTS}/{fingerprint}"

    @property
    def checkpoints(self) -> Path:
        """Where runs keep their checkpoints while they go on: in a folder store itself, else in this user's cache."""
        if self.root is not None:
            return self.root / CHECKPOINTS
        return cache_root() / "checkpoints" / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    # --- look-up ---

    def find(self, fingerprint: str) -> Published | None:
        """Return the artifact with that fingerprint if it is complete: manifest sound, every file there in its size."""
        snapshot = self._whole_snapshot(fingerprint)
        return None if snapshot is None else self._published_artifact(snapshot, fingerprint)

    def snapshot(self, fingerprint: str) -> Snapshot:
        """Return the snapshot with a fingerprint, read from its manifest; whether its files are there is not checked.

        Raises:
            ArtifactNotFoundError: the store has no manifest under it.
            IntegrityError: the manifest is not one, or another artifact's.
        """
        check_fingerprint(fingerprint)
        content = self._objects.get(manifest_key(fingerprint), LARGEST_MANIFEST)
        if content is None:
            raise ArtifactNotFoundError(
                f"store.url={self.url} holds no complete artifact with fingerprint {fingerprint}; publish it first"
            )
        try:
            return read_snapshot(content, fingerprint)
        except IntegrityError as error:
            raise IntegrityError(f"store.url={self.url}, fingerprint {fingerprint}: {error}; {_REMEDY}") from error

    def fingerprints(self) -> dict[str, StoredObject]:
        """Return the fingerprints of all manifests, each with the manifest's size, time and version as an object."""
        found = {Path(item.key).stem: item for item in self._objects.list(MANIFESTS) if item.key.endswith(".json")}
        return {name: item for name, item in found.items() if is_fingerprint(name)}

    def revisions(self, repo_id: str | None = None) -> list[Revision]:
        """Return all revisions, or one repo's, sorted by repo_id and name; unreadable pointers are left out."""
        return self.revisions_and_broken(repo_id)[0]

    def revisions_and_broken(self, repo_id: str | None = None) -> tuple[list[Revision], list[str]]:
        """Return what `revisions` does, and the keys of pointers that are there but do not say what they point to."""
        if repo_id is not None:
            check_names(repo_id, MAIN)
        listed = list(self._objects.list(f"{REVISIONS}/{repo_id}" if repo_id else REVISIONS))
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            found = list(pool.map(self._known_pointer, listed))
        known = [one for one in found if isinstance(one, Revision)]
        broken = [one for one in found if isinstance(one, str)]
        return sorted(known, key=lambda one: (one.repo_id, one.revision)), broken

    def fingerprint_of(self, repo_id: str, revision: str) -> str | None:
        """Return the fingerprint that a revision points to now, None if there is no such revision."""
        check_names(repo_id, revision)
        known = self._pointer_or_broken(revision_key(repo_id, revision))
        return known.fingerprint if isinstance(known, Revision) else None

    def resolve(self, repo_id: str, revision: str | None = None) -> Revision:
        """Return the revision that a reader means.

        Args:
            repo_id: `namespace/name`.
            revision: a name; a fingerprint or a commit that a revision of this repo points to; None, or `main` where no
                revision is called so: the one that moved last.

        Raises:
            ArtifactNotFoundError: there is none; the message names what there is.
        """
        check_names(repo_id, revision or MAIN)
        known = self.revisions(repo_id)
        by_name = {one.revision: one for one in known}
        if (revision or MAIN) in by_name:
            return by_name[revision or MAIN]
        # Nobody has to name a revision `main`: where none is, the youngest one answers, as a branch's head does.
        if revision in (None, MAIN) and known:
            return max(known, key=lambda one: (one.moved, one.revision))
        if revision is not None and is_commit_or_fingerprint(revision):
            for one in known:
                if one.fingerprint == revision or self._commit_or_none(one) == revision:
                    return one
        raise ArtifactNotFoundError(
            f"store.url={self.url} has no {self._describe_unknown(repo_id, revision, list(by_name))}"
        )

    # --- reading ---

    def read(self, entry: FileEntry) -> bytes:
        """Return the bytes of a file of an artifact, those that were hashed.

        Raises:
            ArtifactNotFoundError: the blob is gone.
            IntegrityError: its bytes are not those that the manifest promised.
        """
        content = self._objects.get(blob_key(entry.sha256))
        if content is None:
            raise self._missing_blob_error(entry)
        self._refuse_other_bytes(entry, hashlib.sha256(content).hexdigest(), len(content))
        return content

    def read_range(self, entry: FileEntry, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` (exclusive) of a file; a part cannot be verified by the file's sha256.

        Raises:
            ArtifactNotFoundError: the blob is gone.
            IntegrityError: it is shorter than the manifest promised.
        """
        end = min(end, entry.size)
        content = self._objects.get_range(blob_key(entry.sha256), start, end)
        if content is None:
            raise self._missing_blob_error(entry)
        if len(content) != max(end - start, 0):
            raise IntegrityError(f"store.url={self.url}: {entry.path} is shorter than its manifest says; {_REMEDY}")
        return content

    def stat(self, entry: FileEntry) -> StoredObject | None:
        """Return size, time and version of a file's blob without reading it; None if it is gone."""
        return self._objects.head(blob_key(entry.sha256))

    def stream(self, entry: FileEntry, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) of a file in chunks; few of them are in memory at a time.

        Errors as for `read_range`; `verify_file` before it, if the bytes go to someone who does not hash them.
        """
        return self._objects.stream(blob_key(entry.sha256), start, entry.size if end is None else min(end, entry.size))

    def local_path(self, entry: FileEntry) -> Path | None:
        """Return the path of a file's blob in a folder store; None for other stores.

        Raises:
            IntegrityError: a symlink stands in the way.
        """
        return None if self.root is None else self._objects.path(blob_key(entry.sha256))

    def verify_file(self, entry: FileEntry) -> None:
        """Read a file in parts and compare it with its manifest; errors as for `read`."""
        found = self.stat(entry)
        if found is None:
            raise self._missing_blob_error(entry)
        if (path := self.local_path(entry)) is not None:
            return self._refuse_other_bytes(entry, sha256_of_file(path), found.size)
        digest, key = hashlib.sha256(), blob_key(entry.sha256)
        for start, end in part_ranges(found.size):
            part = self._objects.get_range(key, start, end)
            if part is None:
                raise self._missing_blob_error(entry)
            digest.update(part)
        return self._refuse_other_bytes(entry, digest.hexdigest(), found.size)

    # --- helpers ---

    def _whole_snapshot(self, fingerprint: str) -> Snapshot | None:
        """Return the snapshot if every file of it is there in its size, else None.

        Content is not hashed here, which would read gigabytes to answer "is it there"; reading hashes.
        """
        try:
            snapshot = self.snapshot(fingerprint)
        except (ArtifactNotFoundError, IntegrityError):
            return None
        return None if self._missing_files(snapshot) else snapshot

    def _missing_files(self, snapshot: Snapshot) -> list[FileEntry]:
        """Return the files that are not there in their size; the manifest is no blob."""
        entries = [entry for entry in snapshot.files.values() if entry.path != MANIFEST_FILE]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE if self.root is None else 1) as pool:
            found = list(pool.map(self.stat, entries))
        return [entry for entry, one in zip(entries, found, strict=True) if one is None or one.size != entry.size]

    def _published_artifact(
        self, snapshot: Snapshot, fingerprint: str, name: tuple[str, str] | None = None
    ) -> Published:
        folder = None
        if self._folder_view is not None:
            folder = self._folder_view.revision(*name) if name else self._folder_view.snapshot(fingerprint)
        url = self.revision_url(*name) if name else self.snapshot_url(fingerprint)
        return Published(url, folder, fingerprint, snapshot.manifest)

    def _known_pointer(self, listed: StoredObject) -> Revision | str | None:
        """Return what `_pointer_or_broken` does, without a request if the pointer has not changed since it was read."""
        # A listing tells version and time of each pointer, so a store of a thousand names is one request, not 1,001.
        known = self._pointers.get(listed.key)
        if known is not None and (known[0].version, known[0].second) == (listed.version, listed.second):
            return known[1]
        return self._pointer_or_broken(listed.key)

    def _pointer_or_broken(self, key: str) -> Revision | str | None:
        """Read a pointer: return its revision; its key if it cannot be understood; None if it has just gone."""
        try:
            known = self._objects.get_described(key, _LARGEST_POINTER)
        except IntegrityError:
            return key
        if known is None:
            return None
        found, content = known
        named = re.fullmatch(rf"{REVISIONS}/([^/]+/[^/]+)/([^/]+)\.json", key)
        try:
            assert named is not None
            check_names(named[1], named[2])
            fingerprint = str(json.loads(content)["fingerprint"])
            check_fingerprint(fingerprint)
        except (AssertionError, ValueError, KeyError, TypeError, RecursionError, StoreError):
            return key
        revision = Revision(named[1], named[2], fingerprint, found.modified)
        self._pointers[key] = found, revision
        return revision

    def _commit_or_none(self, revision: Revision) -> str | None:
        try:
            return self.snapshot(revision.fingerprint).commit
        except StoreError:
            return None

    def _refuse_other_bytes(self, entry: FileEntry, sha256: str, size: int, where: str | None = None) -> None:
        if (sha256, size) != (entry.sha256, entry.size):
            raise IntegrityError(
                f"{where or f'store.url={self.url}: {entry.path}'} has sha256 {sha256} and {size} bytes, but its "
                f"manifest says {entry.sha256} and {entry.size}; {_REMEDY}"
            )

    def _missing_blob_error(self, entry: FileEntry) -> ArtifactNotFoundError:
        return ArtifactNotFoundError(
            f"store.url={self.url}: {entry.path} ({entry.sha256}) is missing though its manifest lists it; {_REMEDY}"
        )

    def _describe_unknown(self, repo_id: str, revision: str | None, revisions: list[str]) -> str:
        """Say, for an error message, what is not there and what there is instead."""
        if revisions:
            near = get_close_matches(revision or "", revisions, _MOST_NAMED, 0.0)
            return f"{repo_id}@{revision}; it has {', '.join(near or revisions[:_MOST_NAMED])}"
        repos = sorted({one.repo_id for one in self.revisions()})
        near = get_close_matches(repo_id, repos, 3) or repos[:_MOST_NAMED]
        return f"{repo_id}; " + (f"it has {', '.join(near)}" if near else "it is empty: publish an artifact first")

    def _translate_os_errors(self, what: str) -> AbstractContextManager[None]:
        remedy = "make room or grant the rights there, or choose another folder"
        return translate_os_errors(f"store.url={self.url} {what}", remedy, names_file=True)
