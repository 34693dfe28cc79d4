"""An artifact in a store: read where a folder store has it, else brought into the cache."""

import re
from collections.abc import Iterator
from pathlib import Path

from eva_dist.store.artifact_reader import Opened, OpenedElsewhere, OpenedFolder
from eva_dist.store.cache import Cache
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry, Snapshot
from eva_dist.store.store import Store

_PART_BYTES = 8 << 20
_LASTING = re.compile(r"[0-9a-f]{40,128}")


class OpenedStore(OpenedElsewhere):
    """An artifact in a store without folders, or whose folder is not there."""

    def __init__(self, store: Store, snapshot: Snapshot, where: str, cache: Cache) -> None:
        super().__init__(snapshot, where, cache)
        self.store = store

    def _chunks(self, entry: FileEntry) -> Iterator[bytes]:
        for start in range(0, entry.size, _PART_BYTES):
            yield self.store.read_range(entry, start, min(start + _PART_BYTES, entry.size))

    def _read_range(self, name: str, start: int, end: int) -> bytes:
        return self.store.read_range(self.entry(name), start, end)


def open_store(url: str, repo_id: str, revision: str | None, cache: Cache) -> Opened:
    """Return what a store holds under a name, or, where `repo_id` is empty, under a fingerprint.

    A bucket is not asked for a commit or a fingerprint that the cache knows: they never move.

    Raises:
        ArtifactNotFoundError: nothing; the message names what there is.
        IntegrityError: its manifest is none.
        StoreError: the store cannot be reached.
    """
    store = Store(url)
    shared = store.root is None and not url.startswith("memory:")
    place = url.rstrip("/")
    if shared and revision is not None and _LASTING.fullmatch(revision):
        known = cache.recall((place, repo_id, revision))
        if known is not None and known.never_moves(revision):
            return OpenedStore(store, known.snapshot, _where(store, repo_id, revision), cache)
    if repo_id:
        found = store.resolve(repo_id, revision)
        fingerprint, where = found.fingerprint, _where(store, repo_id, found.revision)
    else:
        assert revision is not None
        fingerprint, where = revision, store.snapshot_url(revision)
    snapshot = store.snapshot(fingerprint)
    if store.root is not None and (own := _own_folder(store, fingerprint, snapshot)) is not None:
        return OpenedFolder(own, snapshot)
    if shared:
        for lasting in {fingerprint, snapshot.commit}:
            cache.remember((place, repo_id, lasting), snapshot.commit, snapshot)
    return OpenedStore(store, snapshot, where, cache)


def _where(store: Store, repo_id: str, revision: str) -> str:
    return store.revision_url(repo_id, revision) if repo_id else store.snapshot_url(revision)


def _own_folder(store: Store, fingerprint: str, snapshot: Snapshot) -> Path | None:
    """Return the folder that shows an artifact: what a link leads to now, for it may lead elsewhere soon."""
    found = store.find(fingerprint)
    if found is None or found.folder is None:
        return None
    folder = found.folder.resolve()
    try:
        return folder if (folder / MANIFEST_FILE).read_bytes() == snapshot.content else None
    except OSError:
        return None
