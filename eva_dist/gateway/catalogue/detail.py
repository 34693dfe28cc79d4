"""What an artifact's page draws: layers, spectra and convergence, read from its tables in a thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.file_names import CONVERGENCE_FILE, SPECTRUM_FILE
from eva_dist.artifact.layer_names import Place, places
from eva_dist.artifact.layer_table import LayerRow, layer_rows, most_components
from eva_dist.artifact.reading import as_count, shown
from eva_dist.errors import StoreError

if TYPE_CHECKING:
    import numpy as np

    from eva_dist.store.snapshot import Snapshot
    from eva_dist.store.store import Store

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
    layers = layer_rows(snapshot.manifest)
    detail = Detail(layers, places([layer.name for layer in layers]))
    problems: list[str] = []
    found: dict[str, Any] = {}
    for file, read in ((SPECTRUM_FILE, _read_spectra), (CONVERGENCE_FILE, _read_convergence)):
        try:
            found |= read(detail, snapshot, _read_file(store, snapshot, file))
        except (StoreError, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            problems.append(f"{file}: {shown(str(error), 200) or type(error).__name__}")
    return Detail(layers, detail.places, **found, problems=tuple(problems))


def _read_file(store: Store, snapshot: Snapshot, file: str) -> bytes:
    """Return a table's bytes, unless they are more than a table has."""
    from eva_dist.artifact.tables import MOST_BYTES

    entry = snapshot.files.get(file)
    if entry is None:
        raise ValueError("not among the artifact's files")
    if entry.size > MOST_BYTES:
        raise ValueError(f"{entry.size:,} bytes are more than a page reads ({MOST_BYTES:,})")
    return store.read(entry)


def _most_steps(snapshot: Snapshot, layers: Sequence[LayerRow]) -> int | None:
    """Return how many rows the convergence may have: a step and group each; None where no step is told."""
    steps = [as_count(snapshot.manifest.get("steps")), *(layer.updates for layer in layers)]
    most = max((count for count in steps if count is not None), default=None)
    return None if most is None else most * len({layer.input_group for layer in layers})


def _read_spectra(detail: Detail, snapshot: Snapshot, content: bytes) -> dict[str, Any]:
    import numpy as np

    from eva_dist.artifact.tables import KEPT, LAST_STEP, RATIO, read_spectrum

    most = most_components(detail.layers)
    spectrum = read_spectrum(content, most, ("component", RATIO, LAST_STEP, KEPT))
    names, layer_R = spectrum.names, spectrum.layer_R
    component_R, ratio_R = spectrum.columns["component"], spectrum.columns[RATIO]
    most_R = np.array([most[name] for name in names], dtype=float)[layer_R]
    can_be = (component_R >= 0) & (component_R < most_R) & (component_R % 1 == 0) & np.isfinite(ratio_R)
    if not np.all(can_be):
        raise ValueError("it holds components or ratios that cannot be")
    width = int(component_R.max(initial=-1)) + 1
    if len(names) * width > _MOST_RATIOS:
        raise ValueError(f"{len(names):,} layers of {width:,} components are more than a page draws")
    ratios_LK = np.full((len(names), width), np.nan)
    ratios_LK[layer_R, component_R.astype(int)] = ratio_R
    return {
        "explained": spectrum.explained,
        "converged_at": spectrum.steps_to_converge,
        "spectra": _spectra_by_kind(detail, dict(zip(names, ratios_LK, strict=True))),
    }


def _spectra_by_kind(detail: Detail, ratios: Mapping[str, np.ndarray[Any, Any]]) -> tuple[KindSpectrum, ...]:
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


def _read_convergence(detail: Detail, snapshot: Snapshot, content: bytes) -> dict[str, Any]:
    """Return the share of layers that have converged after each step.

    After the last one the manifest tells how many have, of a run of its own.
    """
    import numpy as np

    from eva_dist.artifact.tables import MOST_ROWS, coded, converged_by_step, numbers, read_columns

    most = _most_steps(snapshot, detail.layers)
    table = read_columns(content, ("input_group", "step"), MOST_ROWS if most is None else most)
    sizes = Counter(layer.input_group for layer in detail.layers)
    groups, group_R = coded(table["input_group"])
    step_R = numbers(table["step"])
    total = sum(sizes.values())
    if not len(step_R) or not total:
        return {}
    if not np.all((step_R >= 0) & (step_R < MOST_ROWS) & (step_R % 1 == 0)):
        raise ValueError("it holds steps that cannot be")
    layers_R = np.array([sizes[group] for group in groups], dtype=float)[group_R]
    # What was derived or merged counts its layers by settings of its own, by which no pass was judged.
    of_its_own = not any(snapshot.manifest.get(f"{how}_from") for how in ("derived", "merged"))
    at_end = as_count(snapshot.manifest.get("layers_converged")) if of_its_own else None
    shares = converged_by_step(step_R.astype(int), layers_R, total, at_end)
    return {"convergence": tuple((step, min(max(share, 0.0), 1.0)) for step, share in enumerate(shares, start=1))}
