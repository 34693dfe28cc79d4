"""What an artifact's page draws: layers, spectra and convergence, read from its tables in a thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.manifest_facts import LayerRow, read_layers
from eva_dist.artifact.places import Place, places
from eva_dist.artifact.reading import as_count, shown
from eva_dist.errors import StoreError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from eva_dist.store.snapshot import Snapshot
    from eva_dist.store.store import Store

SPECTRUM_FILE, CONVERGENCE_FILE = "spectrum.parquet", "convergence.parquet"

_SPECTRUM_COLUMNS = ("layer", "component", "explained_variance_ratio", "step_converged", "kept")
_MOST_COMPONENTS = 4096
_MOST_RATIOS = 4_000_000
"""Numbers in the matrix of layers by components."""


@dataclass(frozen=True)
class KindSpectrum:
    """Explained-variance ratios of the inputs of a kind, by component: over blocks the middle, least and largest.

    `kinds` share an input; `mean_rank` is that of their layers.
    """

    kinds: str
    inputs: int
    mean_rank: float
    medians: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


@dataclass(frozen=True)
class Detail:
    """All that is drawn; `problems` say which parts could not be read."""

    layers: tuple[LayerRow, ...]
    places: Mapping[str, Place]
    explained: Mapping[str, float] = field(default_factory=dict)
    converged_at: Mapping[str, int] = field(default_factory=dict)
    spectra: tuple[KindSpectrum, ...] = ()
    convergence: tuple[tuple[int, float], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by layer, of those that have one."""
        return {layer.name: layer.rank for layer in self.layers if layer.rank is not None}

    @property
    def mean_explained(self) -> float | None:
        """Mean over the layers of the share that their kept components explain."""
        return sum(self.explained.values()) / len(self.layers) if self.explained and self.layers else None


def read_detail(store: Store, snapshot: Snapshot) -> Detail:
    """Return the detail of an artifact; a table that cannot be read is a problem told, not an error. Blocks."""
    layers = read_layers(snapshot.manifest)
    detail = Detail(layers, places([layer.name for layer in layers]))
    problems: list[str] = []
    found: dict[str, Any] = {}
    most_rows = sum(_most_components(layers).values()), _most_steps(snapshot, layers)
    for file, columns, most, read in (
        (SPECTRUM_FILE, _SPECTRUM_COLUMNS, most_rows[0], _spectrum),
        (CONVERGENCE_FILE, ("input_group", "step"), most_rows[1], _convergence),
    ):
        try:
            found |= read(detail, snapshot, _table(store, snapshot, file, columns, most))
        except (StoreError, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            problems.append(f"{file}: {shown(str(error), 200) or type(error).__name__}")
    return Detail(layers, detail.places, **found, problems=tuple(problems))


def _table(store: Store, snapshot: Snapshot, file: str, columns: Sequence[str], most_rows: int | None) -> pa.Table:
    """Return columns of a table, the first one of texts, that is not larger than the manifest can mean."""
    from eva_dist.artifact.columns import MOST_BYTES, MOST_ROWS, read_columns

    entry = snapshot.files.get(file)
    if entry is None:
        raise ValueError("not among the artifact's files")
    if entry.size > MOST_BYTES:
        raise ValueError(f"{entry.size:,} bytes are more than a page reads ({MOST_BYTES:,})")
    return read_columns(store.read(entry), columns, MOST_ROWS if most_rows is None else most_rows)


def _most_components(layers: Sequence[LayerRow]) -> dict[str, int]:
    """Return how many components may be stored of each layer: as many as its input's members need."""
    of_group: dict[str, int] = {}
    for layer in layers:
        most = _MOST_COMPONENTS if layer.max_rank is None else min(layer.max_rank, _MOST_COMPONENTS)
        of_group[layer.input_group] = max(of_group.get(layer.input_group, 0), most)
    return {layer.name: of_group[layer.input_group] for layer in layers}


def _most_steps(snapshot: Snapshot, layers: Sequence[LayerRow]) -> int | None:
    """Return how many rows the convergence may have: a step and group each; None where no step is told."""
    steps = [as_count(snapshot.manifest.get("steps")), *(layer.updates for layer in layers)]
    most = max((count for count in steps if count is not None), default=None)
    return None if most is None else most * len({layer.input_group for layer in layers})


def _spectrum(detail: Detail, snapshot: Snapshot, table: pa.Table) -> dict[str, Any]:
    import numpy as np

    from eva_dist.artifact.columns import coded, numbers

    names, layer_R = coded(table["layer"])
    most = _most_components(detail.layers)
    if unknown := next((name for name in names if name not in most), None):
        raise ValueError(f"it names {unknown[:100]!r}, which is no layer of the manifest")
    component_R = numbers(table["component"])
    ratio_R, kept_R = numbers(table["explained_variance_ratio"]), numbers(table["kept"]) > 0
    step_R = numbers(table["step_converged"])
    most_R = np.array([most[name] for name in names], dtype=float)[layer_R]
    can_be = (component_R >= 0) & (component_R < most_R) & (component_R % 1 == 0) & np.isfinite(ratio_R)
    if not np.all(can_be):
        raise ValueError("it holds components or ratios that cannot be")
    explained = np.bincount(layer_R, weights=ratio_R * kept_R, minlength=len(names))
    last_step = np.full(len(names), np.nan)
    last_step[layer_R] = step_R
    width = int(component_R.max(initial=-1)) + 1
    if len(names) * width > _MOST_RATIOS:
        raise ValueError(f"{len(names):,} layers of {width:,} components are more than a page draws")
    ratios_LK = np.full((len(names), width), np.nan)
    ratios_LK[layer_R, component_R.astype(int)] = ratio_R
    return {
        "explained": dict(zip(names, explained.tolist(), strict=True)),
        "converged_at": {n: int(s) + 1 for n, s in zip(names, last_step, strict=True) if np.isfinite(s)},
        "spectra": _by_kind(detail, dict(zip(names, ratios_LK, strict=True))),
    }


def _by_kind(detail: Detail, ratios: Mapping[str, np.ndarray[Any, Any]]) -> tuple[KindSpectrum, ...]:
    """Group the layers by the kinds that share their input; of an input group one layer speaks for all."""
    import numpy as np

    members: dict[str, list[LayerRow]] = {}
    for layer in detail.layers:
        if layer.name in ratios:
            members.setdefault(layer.input_group, []).append(layer)
    of_kinds: dict[str, list[list[LayerRow]]] = {}
    for group in members.values():
        kinds = " / ".join(dict.fromkeys(detail.places[layer.name].kind for layer in group))
        of_kinds.setdefault(kinds, []).append(group)
    spectra = []
    for kinds, groups in of_kinds.items():
        ratios_GK = np.stack([ratios[group[0].name] for group in groups])
        known_K = np.isfinite(ratios_GK).any(axis=0)
        if not known_K.any():
            continue
        ratios_GK = ratios_GK[:, : int(np.argmin(known_K)) or len(known_K)]
        three = (np.nanmedian(ratios_GK, axis=0), np.nanmin(ratios_GK, axis=0), np.nanmax(ratios_GK, axis=0))
        ranks = [layer.rank for group in groups for layer in group if layer.rank is not None]
        mean_rank = sum(ranks) / len(ranks) if ranks else 0.0
        spectra.append(KindSpectrum(kinds, len(groups), mean_rank, *(tuple(line.tolist()) for line in three)))
    return tuple(spectra)


def _convergence(detail: Detail, snapshot: Snapshot, table: pa.Table) -> dict[str, Any]:
    """Return the share of layers that have converged after each step.

    A group is tapped at a step exactly if it had not converged after the one before, so the rows of the next step
    tell who still turned; after the last one the manifest does, of a run of its own.
    """
    import numpy as np

    from eva_dist.artifact.columns import MOST_ROWS, coded, numbers

    sizes = Counter(layer.input_group for layer in detail.layers)
    groups, group_R = coded(table["input_group"])
    step_R = numbers(table["step"])
    total = sum(sizes.values())
    if not len(step_R) or not total:
        return {}
    if not np.all((step_R >= 0) & (step_R < MOST_ROWS) & (step_R % 1 == 0)):
        raise ValueError("it holds steps that cannot be")
    weight_R = np.array([sizes[group] for group in groups], dtype=float)[group_R]
    turning = np.bincount(step_R.astype(int), weights=weight_R).tolist()
    converged = [1 - still / total for still in turning[1:]]
    at_end = as_count(snapshot.manifest.get("layers_converged"))
    of_its_own = not any(snapshot.manifest.get(f"{how}_from") for how in ("derived", "merged"))
    if at_end is not None and of_its_own:  # else it judges other passes by these settings
        converged.append(at_end / total)
    return {"convergence": tuple((step, min(max(share, 0.0), 1.0)) for step, share in enumerate(converged, start=1))}
