"""Looking after a store: is every byte what its manifest says, and what does nothing name any more."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eva_dist.errors import IntegrityError, StoreError
from eva_dist.store.objects import Found
from eva_dist.store.reader import BLOBS, blob_key, manifest_key
from eva_dist.store.snapshot import MANIFEST_FILE, Snapshot
from eva_dist.store.store import GRACE, Store


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at: a file of an artifact, or a revision. `problem` is None if it is as it should be.

    `name` is the fingerprint of the artifact, or `repo_id@revision`; `path` the file, None for all that stands there.
    """

    name: str
    path: str | None
    size: int
    problem: str | None


@dataclass(frozen=True)
class Garbage:
    """What nothing names, and nobody has touched for a while.

    Attributes:
        manifests: fingerprints of artifacts that no revision points to.
        blobs: objects that no manifest names, once those manifests are gone.
        paths: in a folder store, what publishers that were killed have left, and links to nothing.
        older_than: the age that all of them had.
    """

    manifests: tuple[str, ...]
    blobs: tuple[Found, ...]
    paths: tuple[Path, ...]
    older_than: timedelta

    @property
    def size(self) -> int:
        """Bytes of the blobs."""
        return sum(blob.size for blob in self.blobs)


def verify(store: Store) -> Iterator[Checked]:
    """Yield each file of each artifact and each revision, as it is found; every blob is read once, however often named.

    Raises:
        StoreError: the store cannot be read at all.
    """
    sound: dict[str, str | None] = {}
    whole = set()
    for fingerprint in store.fingerprints():
        try:
            snapshot = store.snapshot(fingerprint)
        except StoreError as error:
            yield Checked(fingerprint, MANIFEST_FILE, 0, str(error))
            continue
        whole.add(fingerprint)
        yield Checked(fingerprint, MANIFEST_FILE, len(snapshot.content), snapshot.changed)
        for entry in snapshot.files.values():
            if entry.path == MANIFEST_FILE:
                continue
            if entry.sha256 not in sound:
                try:
                    store.verify_file(entry)
                    sound[entry.sha256] = None
                except StoreError as error:
                    sound[entry.sha256] = str(error)
            yield Checked(fingerprint, entry.path, entry.size, sound[entry.sha256])
    revisions, broken = store.revisions_and_broken()
    for key in broken:
        problem = "does not say what it points to; publish the artifact again under this name, or remove the name"
        yield Checked(key, None, 0, problem)
    for one in revisions:
        gone = one.fingerprint not in whole
        problem = f"points to {one.fingerprint}, which the store does not hold; remove it, or publish it again"
        yield Checked(f"{one.repo_id}@{one.revision}", None, 0, problem if gone else store.view_problem(one))


def garbage(store: Store, older_than: timedelta = GRACE) -> Garbage:
    """Return what nothing names; nothing is removed.

    Blobs are listed before manifests: one that is named in between is seen to be named.

    Raises:
        StoreError: the store cannot be read.
        IntegrityError: a manifest or a revision cannot: what it names is not known then.
    """
    now = datetime.now(UTC)
    blobs = list(store.objects_below(BLOBS))
    manifests = store.fingerprints()
    revisions, broken = store.revisions_and_broken()
    if broken:
        raise IntegrityError(
            f"store.url={store.url}: {', '.join(broken)} does not say what it points to, so what nothing names is not "
            "known; publish the artifact again under this name, or remove it (eva-dist rm)"
        )
    pointed = {one.fingerprint for one in revisions}
    unnamed = {name for name, found in manifests.items() if name not in pointed and now - found.modified >= older_than}
    kept: list[Snapshot] = [store.snapshot(name) for name in manifests if name not in unnamed]
    named = {blob_key(entry.sha256) for snapshot in kept for entry in snapshot.files.values()}
    return Garbage(
        manifests=tuple(sorted(unnamed)),
        blobs=tuple(blob for blob in blobs if blob.key not in named and now - blob.modified >= older_than),
        paths=store.stale_paths(set(manifests) - unnamed, revisions, older_than),
        older_than=older_than,
    )


def collect(store: Store, found: Garbage) -> int:
    """Remove garbage, what has been named or written again meanwhile left alone; return the bytes of the blobs removed.

    Manifests go first: whoever looks then finds an artifact whole or not at all.
    """
    still = garbage(store, found.older_than)
    manifests = store.fingerprints()
    for fingerprint in sorted(set(found.manifests) & set(still.manifests)):
        if fingerprint in manifests and store.is_same(manifests[fingerprint]):
            store.delete_object(manifest_key(fingerprint))
    last = garbage(store, found.older_than)
    again = {blob.key for blob in last.blobs}
    removed = 0
    for blob in found.blobs:
        if blob.key in again and store.is_same(blob):
            store.delete_object(blob.key)
            removed += blob.size
    for path in set(found.paths) & set(last.paths):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return removed
