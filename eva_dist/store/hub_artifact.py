"""Open an artifact on a Hub: the Hub itself, or a gateway of ours; its files are downloaded into the cache."""

import logging
from collections.abc import Iterator

from huggingface_hub import constants

from eva_dist.errors import IntegrityError
from eva_dist.store.artifact_reader import FetchingArtifactReader, NoRangesError
from eva_dist.store.cache import Cache
from eva_dist.store.hub_repository import HubRepository
from eva_dist.store.name_rules import MAIN, is_commit_or_fingerprint
from eva_dist.store.snapshot import FileEntry, Snapshot, read_snapshot

log = logging.getLogger(__name__)


class HubArtifactReader(FetchingArtifactReader):
    """An artifact on a Hub at one commit, so that a name that moves meanwhile does not mix two artifacts."""

    def __init__(self, repository: HubRepository, commit: str, snapshot: Snapshot, cache: Cache) -> None:
        super().__init__(snapshot, repository.asked, cache)
        self.repository = repository
        self.commit = commit

    def _download_file(self, entry: FileEntry) -> Iterator[bytes]:
        return self.repository.stream(self.commit, entry.path, 0, entry.size)

    def _read_remote_range(self, name: str, start: int, end: int) -> bytes:
        content = bytearray()
        for chunk in self.repository.stream(self.commit, name, start, end):
            content += chunk
            if len(content) > end - start:
                raise NoRangesError(f"source={self.where}: more bytes of {name} came than were asked for")
        return bytes(content)


def open_hub_artifact(endpoint: str, repo_id: str, revision: str | None, asked: str, cache: Cache) -> HubArtifactReader:
    """Open the artifact that a revision of a repository is now.

    A fingerprint or a commit that the cache can prove by the manifest is answered without a request. With
    `HF_HUB_OFFLINE=1` so is every revision that was asked for before.

    Args:
        endpoint: the Hub's URL; empty: the one of the environment.
        repo_id: `org/name`.
        revision: name, commit or fingerprint; None: `main`.
        asked: the reference as a person gave it, for messages.
        cache: where files are kept.

    Raises:
        ArtifactNotFoundError: no such repository or revision, or it is no artifact of ours.
        IntegrityError: its manifest is not one, or another artifact's than the fingerprint that was asked for.
        StoreError: it cannot be reached, or refuses.
    """
    repository = HubRepository(endpoint, repo_id, asked)
    place = (repository.endpoint, repo_id)
    known = cache.recall((*place, revision or MAIN))
    if known is not None and (known.never_moves(revision) or constants.is_offline_mode()):
        if not known.never_moves(revision) and revision != known.commit:
            log.warning("%s: offline (HF_HUB_OFFLINE), so answered from the cache; it may have moved since", asked)
        return HubArtifactReader(repository, known.commit, known.snapshot, cache)
    try:
        commit = repository.commit(revision)
        # The name may have moved, but a commit has one manifest: the one in the cache need not travel again.
        known = cache.recall((*place, commit))
        snapshot = known.snapshot if known and known.commit == commit else read_snapshot(repository.manifest(commit))
    except IntegrityError as error:
        raise IntegrityError(f"source={asked}: {error}") from error
    # Whoever asks for a fingerprint means these numbers: a server that has another artifact there is not believed.
    if is_commit_or_fingerprint(revision or "") and revision not in (snapshot.fingerprint, commit):
        raise IntegrityError(
            f"source={asked} is the artifact {snapshot.fingerprint!r} at commit {commit}, not {revision}"
        )
    for name in {revision or MAIN, commit}:
        cache.remember((*place, name), commit, snapshot)
    return HubArtifactReader(repository, commit, snapshot, cache)
