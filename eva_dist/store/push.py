"""Publish an artifact that lies in a folder under a name in a store, without moving somebody's name unasked."""

from dataclasses import dataclass
from pathlib import Path

from eva_dist.errors import ConfigError, StoreError
from eva_dist.store.name_rules import check_names
from eva_dist.store.snapshot import folder_snapshot
from eva_dist.store.store import Store


@dataclass(frozen=True)
class Pushed:
    """Where an artifact was published; `moved_from` is the fingerprint that the name meant before, if another."""

    url: str
    repo_id: str
    revision: str
    fingerprint: str
    moved_from: str | None


def push_folder(folder: Path, store_url: str, repo_id: str, revision: str | None, force: bool) -> Pushed:
    """Publish the artifact in a folder, verified first.

    Args:
        folder: of the artifact.
        store_url: of the store.
        repo_id: `namespace/name`.
        revision: None: the one that the artifact's manifest says.
        force: let the name be this artifact's even if it is another one's now, and replace other files.

    Raises:
        ConfigError: the artifact says no revision, or the name is another artifact's and `force` is not given.
        ArtifactNotFoundError, IntegrityError, StoreError: see `Store.publish_folder`.
    """
    snapshot, store = folder_snapshot(folder), Store(store_url)
    revision = revision or str(snapshot.manifest.get("revision", ""))
    try:
        check_names(repo_id, revision)
    except StoreError as error:
        raise ConfigError(
            f"the artifact says no revision of its own that could be used; give {repo_id}@revision"
        ) from error
    before = store.fingerprint_of(repo_id, revision)
    moved = before if before not in (None, snapshot.fingerprint) else None
    if moved and not force:
        raise ConfigError(
            f"{repo_id}@{revision} in {store_url} is another artifact, {moved[:12]}; choose another revision, or give "
            "--force to let the name be this one's"
        )
    published = store.publish_folder(folder, repo_id, revision, overwrite=force)
    return Pushed(published.url, repo_id, revision, published.fingerprint, moved)
