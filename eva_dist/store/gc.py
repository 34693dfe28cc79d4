"""Garbage collection of a store: find what nothing names any more, and remove it."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eva_dist.errors import IntegrityError
from eva_dist.store.durable_files import remove_entry
from eva_dist.store.objects import StoredObject
from eva_dist.store.snapshot import Snapshot
from eva_dist.store.store import GRACE, Store
from eva_dist.store.store_reader import BLOBS, blob_key, manifest_key


@dataclass(frozen=True)
class Garbage:
    """Manifests, blobs and paths that nothing names, and that nobody has touched for a while.

    Attributes:
        manifests: fingerprints of artifacts that no revision points to.
        blobs: objects that no manifest names, once those manifests are gone.
        paths: in a folder store, what publishers that were killed have left, and links to nothing.
        older_than: the age that all of them had.
    """

    manifests: tuple[str, ...]
    blobs: tuple[StoredObject, ...]
    paths: tuple[Path, ...]
    older_than: timedelta

    @property
    def size(self) -> int:
        """Bytes of the blobs."""
        return sum(blob.size for blob in self.blobs)


def find_garbage(store: Store, older_than: timedelta = GRACE) -> Garbage:
    """Find what nothing names and is older than that; nothing is removed.

    Raises:
        StoreError: the store cannot be read.
        IntegrityError: a manifest or a revision cannot: what it names is not known then.
    """
    now = datetime.now(UTC)
    # Blobs before manifests: a blob that a publisher names in between is then seen to be named.
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


def remove_garbage(store: Store, found: Garbage) -> int:
    """Remove garbage, except what has been named or written again meanwhile; return the bytes of the blobs removed."""
    # Look again before each kind is removed: `found` may have been shown to a person for an hour.
    still = find_garbage(store, found.older_than)
    manifests = store.fingerprints()
    # Manifests before blobs, so that a reader finds an artifact whole or not at all.
    for fingerprint in sorted(set(found.manifests) & set(still.manifests)):
        if fingerprint in manifests and store.is_same(manifests[fingerprint]):
            store.delete_object(manifest_key(fingerprint))
    last = find_garbage(store, found.older_than)
    again = {blob.key for blob in last.blobs}
    removed = 0
    for blob in found.blobs:
        if blob.key in again and store.is_same(blob):
            store.delete_object(blob.key)
            removed += blob.size
    for path in set(found.paths) & set(last.paths):
        with suppress(OSError):
            remove_entry(path)
    return removed
