"""Read what a report needs of an artifact, and refuse one whose files are not those of its manifest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from eva_dist.artifact.file_names import ADAPTER_FILE, ADAPTER_PREFIX, SPECTRUM_FILE, STATE_DICT_FILE
from eva_dist.artifact.layer_table import DescribedLayer, described_layers, layer_rows, most_components
from eva_dist.artifact.tables import Spectrum, read_spectrum
from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError
from eva_dist.report.point import StoredArtifact
from eva_dist.store.artifact_reader import REMEDY, ArtifactReader, FolderArtifactReader
from eva_dist.store.artifact_ref import RefKind, parse_artifact_ref
from eva_dist.store.name_rules import SNAPSHOTS
from eva_dist.store.open_artifact import open_artifact
from eva_dist.store.snapshot import MANIFEST_FILE, folder_snapshot

_CONTRADICTIONS = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, pa.ArrowException)
"""What the code below raises where a file is not what it takes it for."""


def read_artifact(url: str, fingerprint: str) -> StoredArtifact:
    """Return the artifact with that fingerprint that was published at `url`.

    The snapshot is read where the store has it: the revision at `url` may have moved to another one since.

    Raises:
        ArtifactNotFoundError: it is gone, or the revision holds another one.
        IntegrityError: a file is missing, or its content is not what the manifest or another file says.
        ConfigError: `url` names no artifact.
    """
    opened, lies_here = _open_snapshot(url, fingerprint)
    where, manifest = opened.where, opened.snapshot.manifest
    try:
        content = opened.read(SPECTRUM_FILE, progress=False)
        spectrum = read_spectrum(content, most_components(layer_rows(manifest)))
        # Of all else, headers are enough here; rows are read when points are compared.
        folder = opened.fetch([STATE_DICT_FILE, ADAPTER_FILE], progress=False)
        layers = _checked_layers(folder, described_layers(manifest, spectrum), spectrum)
    except _CONTRADICTIONS as error:
        raise IntegrityError(f"{where} is no whole artifact ({error!r}); {REMEDY}") from error
    return StoredArtifact(folder, (lies_here or folder).absolute().as_uri(), manifest, layers)


def _open_snapshot(url: str, fingerprint: str) -> tuple[ArtifactReader, Path | None]:
    """Return the artifact, and where a person finds it: the revision while it leads there, None: its own files."""
    source = parse_artifact_ref(url)
    if source.kind is RefKind.hub:
        raise ConfigError(f"url={url} must be a folder or in a store: a run publishes nowhere else")
    if source.kind is RefKind.store:  # by its fingerprint, for the name may have moved
        try:
            return open_artifact(replace(source, repo_id="", revision=fingerprint)), None
        except ArtifactNotFoundError as error:
            raise _gone_error(url) from error
    revision = Path(source.url)
    folder = _snapshot_folder(revision, fingerprint)
    opened = FolderArtifactReader(folder, folder_snapshot(folder))
    if opened.snapshot.fingerprint != fingerprint:
        raise ArtifactNotFoundError(
            f"{url} holds the artifact {opened.snapshot.fingerprint} by now, and {fingerprint} is gone from its store; "
            "compute the point again"
        )
    return opened, revision if folder.resolve() == revision.resolve() else None


def _snapshot_folder(revision: Path, fingerprint: str) -> Path:
    """Return the store's snapshot beside a revision (`<root>/<namespace>/<name>/<revision>`), else the revision."""
    candidates = [root / SNAPSHOTS / fingerprint for root in revision.absolute().parents[2:3]] + [revision]
    for folder in candidates:
        if (folder / MANIFEST_FILE).is_file():
            return folder
    raise _gone_error(revision)


def _gone_error(where: str | Path) -> ArtifactNotFoundError:
    return ArtifactNotFoundError(
        f"no artifact at {where}: it was removed, or its store lies elsewhere now; compute the point again"
    )


def _checked_layers(folder: Path, layers: tuple[DescribedLayer, ...], spectrum: Spectrum) -> tuple[DescribedLayer, ...]:
    """Return the layers in the order of the spectrum, then those that have no component at all.

    The manifest, the tensors, the adapter and the spectrum must agree: figures of a sweep are made of all four.
    """
    with safe_open(folder / STATE_DICT_FILE, "np") as rows, safe_open(folder / ADAPTER_FILE, "np") as adapter:
        parameters = _count_parameters(adapter)
        ranks = {name: rows.get_slice(name).get_shape()[0] for name in rows.keys()}  # noqa: SIM118
    if not ranks or ranks.keys() != {layer.name for layer in layers}:
        raise IntegrityError(f"the files in {folder} do not speak of the same layers; {REMEDY}")
    for layer in layers:
        kept, written = spectrum.kept.get(layer.name, 0), parameters.get(layer.name, 0)
        if not layer.rank == ranks[layer.name] == kept:
            raise IntegrityError(
                f"{folder}: layer {layer.name} has rank {layer.rank} in {MANIFEST_FILE}, {ranks[layer.name]} in "
                f"{STATE_DICT_FILE} and {kept} in {SPECTRUM_FILE}; {REMEDY}"
            )
        if layer.parameters != written:
            raise IntegrityError(
                f"{folder}: layer {layer.name} has {layer.parameters} parameters by {MANIFEST_FILE}, and {written} in "
                f"{ADAPTER_FILE}; {REMEDY}"
            )
        if not np.isfinite(layer.explained_variance):
            raise IntegrityError(f"{folder}: {SPECTRUM_FILE} holds NaN or infinity for layer {layer.name}; {REMEDY}")
    order = {name: at for at, name in enumerate(spectrum.kept)}
    return tuple(sorted(layers, key=lambda layer: order.get(layer.name, len(order))))


def _count_parameters(adapter: Any) -> dict[str, int]:
    """Return layer name to the number of weights in its A and B, from the file's header alone."""
    sizes: dict[str, int] = {}
    for key in adapter.keys():
        name = key.removeprefix(ADAPTER_PREFIX).rpartition(".lora_")[0]
        sizes[name] = sizes.get(name, 0) + int(np.prod(adapter.get_slice(key).get_shape()))
    return sizes
