"""Open an artifact by its reference, fetch its files, and say where it is."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from eva_dist.store.artifact_reader import ArtifactReader, FolderArtifactReader
from eva_dist.store.artifact_ref import ArtifactRef, RefKind, parse_artifact_ref
from eva_dist.store.cache import Cache
from eva_dist.store.snapshot import folder_snapshot
from eva_dist.store.transfer_progress import Progress


def open_artifact(source: str | os.PathLike[str] | ArtifactRef, store_url: str | None = None) -> ArtifactReader:
    """Open an artifact: its manifest is read and checked, its files are not touched yet.

    Args:
        source: a reference, as text (`artifact_ref.py` has the grammar) or parsed.
        store_url: see `parse_artifact_ref`.

    Raises:
        ConfigError: `source` is not a reference.
        ArtifactNotFoundError: there is no such artifact.
        IntegrityError: its manifest is not one.
        StoreError: the store or the Hub cannot be reached, or refuses.
    """
    ref = source if isinstance(source, ArtifactRef) else parse_artifact_ref(source, store_url)
    if ref.kind is RefKind.folder:
        folder = Path(ref.url)
        return FolderArtifactReader(folder, folder_snapshot(folder))
    cache = Cache()
    if ref.kind is RefKind.hub:
        from eva_dist.store.hub_artifact import open_hub_artifact  # huggingface_hub: not for who reads a folder

        return open_hub_artifact(ref.url, ref.repo_id, ref.revision, ref.text, cache)
    from eva_dist.store.store_artifact import open_store_artifact  # obstore, likewise

    return open_store_artifact(ref.url, ref.repo_id, ref.revision, cache)


def fetch(
    source: str | os.PathLike[str] | ArtifactRef,
    *,
    store_url: str | None = None,
    names: Collection[str] | None = None,
    progress: Progress = None,
) -> Path:
    """Return a local folder that holds an artifact, verified: its own folder if it has one here, else in the cache.

    Args:
        source: a reference: a folder, `team/name@revision` in the store, `s3://...`, `hf://...`, `https://...`.
        store_url: the store in which `team/name` is looked up; None is the default store.
        names: fetch and verify only these files; None: all.
        progress: called with the size of each piece that arrives; None: a bar where standard error is a terminal,
            False: nothing is shown.

    Raises:
        IntegrityError: a file is missing or differs from the manifest.
        ConfigError, ArtifactNotFoundError, StoreError: see `open_artifact`.
    """
    return open_artifact(source, store_url).fetch(names, progress)


@dataclass(frozen=True)
class ArtifactLocation:
    """Where an artifact is, for a person to read and to type.

    Attributes:
        where: where it lies, to show.
        folder: its folder, if it has one on this machine.
        reference: a reference that holds from everywhere, not only with this `--store`.
        name: `team/name@revision` with the revision that the reference means now; None for a folder.
    """

    where: str
    folder: Path | None
    reference: str
    name: str | None = None


def locate_artifact(source: str, store_url: str, reader: ArtifactReader) -> ArtifactLocation:
    """Return where an opened artifact is; in a folder store that is the folder that shows the revision."""
    from eva_dist.store.store import Store

    ref = parse_artifact_ref(source, store_url)
    if ref.kind is RefKind.folder:
        folder = Path(ref.url).absolute()
        return ArtifactLocation(reader.where, folder, str(folder))
    if ref.kind is RefKind.hub or not ref.repo_id:
        name = "@".join(filter(None, (ref.repo_id, ref.revision))) if ref.repo_id else None
        return ArtifactLocation(reader.where, None, source, name)
    store = Store(ref.url)
    revision = store.resolve(ref.repo_id, ref.revision)
    reference = f"{store.root or ref.url.rstrip('/')}/{revision.name}"
    shown = None if store.root is None else store.root / ref.repo_id / revision.revision
    if shown is None or not shown.exists():
        return ArtifactLocation(reader.where, None, reference, revision.name)
    return ArtifactLocation(str(shown), shown, reference, revision.name)
