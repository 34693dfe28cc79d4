"""Compare two opened artifacts, layer by layer and by module kind; `compare.py` has the mathematics."""

from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load

from eva_dist.artifact.file_names import STATE_DICT_FILE
from eva_dist.artifact.layer_names import kinds_in_order, places
from eva_dist.artifact.layer_table import described_layers
from eva_dist.errors import ConfigError, IntegrityError
from eva_dist.store.artifact_reader import ArtifactReader
from eva_dist.transform.compare import ArtifactComparison, LayerPair, compare_layers

_EQUAL_OVERLAP = 1 - 1e-6
"""Subspaces that overlap more differ by rounding alone."""


def compare_artifacts(a: ArtifactReader, b: ArtifactReader) -> ArtifactComparison:
    """Compare two artifacts layer by layer, in the order of A's manifest.

    Raises:
        IntegrityError: the tensors of one are damaged, or have other layers than its manifest.
        ConfigError: they have no layer in common.
    """
    rows_a, rows_b = _read_rows(a), _read_rows(b)
    if not set(rows_a) & set(rows_b):
        raise ConfigError(
            f"A and B have no layer in common: {next(iter(rows_a), 'none')}, ... and "
            f"{next(iter(rows_b), 'none')}, ...; compare artifacts of one base model"
        )
    try:
        return compare_layers(rows_a, rows_b)
    except ValueError as error:
        raise IntegrityError(f"{a.where} and {b.where} cannot be compared: {error}") from error


def compare_kinds(found: ArtifactComparison) -> dict[str, ArtifactComparison]:
    """Return the comparison of each module kind's layers, in the order of a transformer block."""
    where = places([pair.name for pair in found.comparable])
    return {
        kind: ArtifactComparison(tuple(pair for pair in found.comparable if where[pair.name].kind == kind), (), ())
        for kind in kinds_in_order(where)
    }


def most_different(found: ArtifactComparison, most: int) -> list[LayerPair]:
    """Return up to `most` layers that differ in rank or subspace: the least overlap first, then the largest gap."""

    def likeness(pair: LayerPair) -> tuple[float, int]:
        return (round(pair.angles.overlap, 6) if pair.angles else -1.0, -abs(pair.rank_a - pair.rank_b))

    different = [
        pair
        for pair in found.comparable
        if pair.rank_a != pair.rank_b or (pair.angles is not None and pair.angles.overlap < _EQUAL_OVERLAP)
    ]
    return sorted(different, key=likeness)[:most]


def _read_rows(artifact: ArtifactReader) -> dict[str, Any]:
    """Return each layer's rows, in the order of the manifest, after checking that the names agree."""
    try:
        rows = load(artifact.read(STATE_DICT_FILE))
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(f"{STATE_DICT_FILE} of {artifact.where} is no safetensors file ({error})") from error
    names = [layer.name for layer in described_layers(artifact.snapshot.manifest)]
    if set(names) != set(rows) or any(tensor.ndim != 2 for tensor in rows.values()):
        raise IntegrityError(f"{STATE_DICT_FILE} of {artifact.where} has other layers than its manifest")
    return {name: rows[name] for name in names}
