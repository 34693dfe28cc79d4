"""Open an artifact that a store holds: read where a folder store shows it, else downloaded into the cache."""

from collections.abc import Iterator
from pathlib import Path

from eva_dist.store.artifact_reader import ArtifactReader, FetchingArtifactReader, FolderArtifactReader
from eva_dist.store.cache import Cache
from eva_dist.store.name_rules import is_commit_or_fingerprint
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry, Snapshot, part_ranges
from eva_dist.store.store import Store


class StoreArtifactReader(FetchingArtifactReader):
    """An artifact in a bucket, or in a folder store that does not show it as a folder."""

    def __init__(self, store: Store, snapshot: Snapshot, where: str, cache: Cache) -> None:
        super().__init__(snapshot, where, cache)
        self.store = store

    def _download_file(self, entry: FileEntry) -> Iterator[bytes]:
        for start, end in part_ranges(entry.size):
            yield self.store.read_range(entry, start, end)

    def _read_remote_range(self, name: str, start: int, end: int) -> bytes:
        return self.store.read_range(self.entry(name), start, end)


def open_store_artifact(url: str, repo_id: str, revision: str | None, cache: Cache) -> ArtifactReader:
    """Open what a store holds under a name, or, where `repo_id` is empty, under a fingerprint.

    Raises:
        ArtifactNotFoundError: there is no such artifact; the message names what there is.
        IntegrityError: its manifest is not one.
        StoreError: the store cannot be reached.
    """
    store = Store(url)
    is_remote = store.root is None and not url.startswith("memory:")
    place = url.rstrip("/")
    if is_remote and revision is not None and is_commit_or_fingerprint(revision):
        # Commits and fingerprints never move, so the bucket is not asked for one that the cache knows.
        known = cache.recall((place, repo_id, revision))
        if known is not None and known.never_moves(revision):
            return StoreArtifactReader(store, known.snapshot, _shown_url(store, repo_id, revision), cache)
    if repo_id:
        found = store.resolve(repo_id, revision)
        fingerprint, where = found.fingerprint, _shown_url(store, repo_id, found.revision)
    else:
        assert revision is not None
        fingerprint, where = revision, store.snapshot_url(revision)
    snapshot = store.snapshot(fingerprint)
    if store.root is not None and (own := _snapshot_folder(store, fingerprint, snapshot)) is not None:
        return FolderArtifactReader(own, snapshot)
    if is_remote:
        for lasting in {fingerprint, snapshot.commit}:
            cache.remember((place, repo_id, lasting), snapshot.commit, snapshot)
    return StoreArtifactReader(store, snapshot, where, cache)


def _shown_url(store: Store, repo_id: str, revision: str) -> str:
    return store.revision_url(repo_id, revision) if repo_id else store.snapshot_url(revision)


def _snapshot_folder(store: Store, fingerprint: str, snapshot: Snapshot) -> Path | None:
    """Return the folder in which a folder store shows the artifact; None if it shows none, or another one.

    Links are followed once, here: a link that leads to this artifact now may lead to another one while it is read.
    """
    found = store.find(fingerprint)
    if found is None or found.folder is None:
        return None
    folder = found.folder.resolve()
    try:
        return folder if (folder / MANIFEST_FILE).read_bytes() == snapshot.content else None
    except OSError:
        return None
