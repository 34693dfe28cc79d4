"""Read what a report needs of an artifact, and refuse one whose files are not those of its manifest."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from eva_dist.artifact.columns import read_columns
from eva_dist.artifact.file_names import ADAPTER_FILE, SPECTRUM_FILE, STATE_DICT_FILE
from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError
from eva_dist.report.point import LayerEnd, StoredArtifact
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
    opened, lies_here = _open(url, fingerprint)
    where, manifest = opened.where, opened.snapshot.manifest
    try:
        spectra = _spectra(opened.read(SPECTRUM_FILE, progress=False), manifest)
        folder = opened.fetch([STATE_DICT_FILE, ADAPTER_FILE], progress=False)
        layers = _layers(folder, manifest["layers"], spectra)
    except _CONTRADICTIONS as error:
        raise IntegrityError(f"{where} is no whole artifact ({error!r}); {REMEDY}") from error
    return StoredArtifact(folder, (lies_here or folder).absolute().as_uri(), manifest, layers)


@contextmanager
def open_rows(folder: Path) -> Iterator[Callable[[str], "np.ndarray[Any, Any]"]]:
    """While open, give a layer's rows `[rank, in_features]` by its name, as the artifact in `folder` holds them."""
    with safe_open(folder / STATE_DICT_FILE, "np") as tensors:
        yield tensors.get_tensor


def _open(url: str, fingerprint: str) -> tuple[ArtifactReader, Path | None]:
    """Return the artifact, and where a person finds it: the revision while it leads there, None: its own files."""
    source = parse_artifact_ref(url)
    if source.kind is RefKind.hub:
        raise ConfigError(f"url={url} must be a folder or in a store: a run publishes nowhere else")
    if source.kind is RefKind.store:  # by its fingerprint, for the name may have moved
        try:
            return open_artifact(replace(source, repo_id="", revision=fingerprint)), None
        except ArtifactNotFoundError as error:
            raise _gone(url) from error
    revision = Path(source.url)
    folder = _folder(revision, fingerprint)
    opened = FolderArtifactReader(folder, folder_snapshot(folder))
    if opened.snapshot.fingerprint != fingerprint:
        raise ArtifactNotFoundError(
            f"{url} holds the artifact {opened.snapshot.fingerprint} by now, and {fingerprint} is gone from its store; "
            "compute the point again"
        )
    return opened, revision if folder.resolve() == revision.resolve() else None


def _folder(revision: Path, fingerprint: str) -> Path:
    """Return the store's snapshot beside a revision (`<root>/<namespace>/<name>/<revision>`), else the revision."""
    candidates = [root / SNAPSHOTS / fingerprint for root in revision.absolute().parents[2:3]] + [revision]
    for folder in candidates:
        if (folder / MANIFEST_FILE).is_file():
            return folder
    raise _gone(revision)


def _gone(where: str | Path) -> ArtifactNotFoundError:
    return ArtifactNotFoundError(
        f"no artifact at {where}: it was removed, or its store lies elsewhere now; compute the point again"
    )


@dataclass(frozen=True)
class _Spectrum:
    """A layer's part of `spectrum.parquet`."""

    kept: int
    explained_variance: float
    last_step: int | None


def _layers(folder: Path, described: Mapping[str, Any], spectra: Mapping[str, _Spectrum]) -> tuple[LayerEnd, ...]:
    """Return the layers in the order of the spectrum, then those that have no component at all."""
    with safe_open(folder / STATE_DICT_FILE, "np") as rows, safe_open(folder / ADAPTER_FILE, "np") as adapter:
        sizes = _parameters(adapter)
        ranks = {name: rows.get_slice(name).get_shape()[0] for name in rows.keys()}  # noqa: SIM118
    if not ranks or not (ranks.keys() == described.keys() >= spectra.keys()):
        raise IntegrityError(f"the files in {folder} do not speak of the same layers; {REMEDY}")
    nothing = _Spectrum(0, 0.0, None)
    layers = []
    for name in [*spectra, *(name for name in described if name not in spectra)]:
        rank, spectrum = described[name]["rank"], spectra.get(name, nothing)
        if not rank == ranks[name] == spectrum.kept:
            raise IntegrityError(
                f"{folder}: layer {name} has rank {rank} in {MANIFEST_FILE}, {ranks[name]} in {STATE_DICT_FILE} "
                f"and {spectrum.kept} in {SPECTRUM_FILE}; {REMEDY}"
            )
        if not math.isfinite(spectrum.explained_variance):
            raise IntegrityError(f"{folder}: {SPECTRUM_FILE} holds NaN or infinity for layer {name}; {REMEDY}")
        converged = described[name]["stop_reason"] == "converged"
        steps = None if spectrum.last_step is None or not converged else spectrum.last_step + 1
        explained, parameters = spectrum.explained_variance, sizes.get(name, 0)
        layers.append(LayerEnd(name, described[name]["input_group"], rank, steps, explained, parameters, converged))
    return tuple(layers)


def _spectra(content: bytes, manifest: Mapping[str, Any]) -> dict[str, _Spectrum]:
    columns = ["layer", "explained_variance_ratio", "step_converged", "kept"]
    groups = manifest["input_groups"]
    most_rows = sum(groups[layer["input_group"]]["n_components"] for layer in manifest["layers"].values())
    table = read_columns(content, columns, most_rows).to_pydict()
    found: dict[str, _Spectrum] = {}
    for name, ratio, step, kept in zip(*(table[column] for column in columns), strict=True):
        before = found.get(name, _Spectrum(0, 0.0, step))
        found[name] = _Spectrum(before.kept + kept, before.explained_variance + ratio * kept, step)
    return found


def _parameters(adapter: Any) -> dict[str, int]:
    """Return layer name to the number of weights in its A and B, from the file's header alone."""
    sizes: dict[str, int] = {}
    for key in adapter.keys():
        name = key.removeprefix("base_model.model.").rpartition(".lora_")[0]
        sizes[name] = sizes.get(name, 0) + int(np.prod(adapter.get_slice(key).get_shape()))
    return sizes
