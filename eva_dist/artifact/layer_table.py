"""The layers of an artifact, a row each, as its manifest describes them; and their ranks by module kind. No torch.

Two readers look at `manifest["layers"]` here: `layer_rows` for who shows what is known, `described_layers` for who
computes with it. (What rebuilds an artifact, `restore.py`, needs more of the manifest, and refuses more.)
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.file_names import SPECTRUM_FILE
from eva_dist.artifact.layer_names import MOST_DIGITS, Place, block_grid, kinds_in_order, places
from eva_dist.artifact.reading import as_count, at, shown
from eva_dist.errors import IntegrityError

if TYPE_CHECKING:  # pyarrow, which a list of artifacts can do without
    from eva_dist.artifact.tables import Spectrum

_MOST_BLOCKS = 10_000
_MOST_COMPONENTS = 4096
_COUNTS = ("rank", "r", "max_rank", "in_features", "out_features", "updates")


@dataclass(frozen=True)
class LayerRow:
    """A layer as the manifest has it; None where it says nothing, or nothing that makes sense."""

    name: str
    input_group: str
    rank: int | None
    r: int | None
    max_rank: int | None
    in_features: int | None
    out_features: int | None
    updates: int | None
    stop_reason: str | None
    components_below_tau: int | None

    @property
    def parameters(self) -> int | None:
        """LoRA's A and B."""
        if self.rank is None or self.in_features is None or self.out_features is None:
            return None
        return self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True)
class DescribedLayer(LayerRow):
    """A layer of which the manifest says all that it should.

    Attributes:
        explained: share of its input's variance that its kept components explain; None where no spectrum says it.
        steps_to_converge: steps after which it was not updated any more; None: it always was, or no spectrum says.
    """

    rank: int
    r: int
    max_rank: int
    in_features: int
    out_features: int
    updates: int
    stop_reason: str
    place: Place
    explained: float | None = None
    steps_to_converge: int | None = None

    @property
    def parameters(self) -> int:
        """LoRA's A and B."""
        return self.rank * (self.in_features + self.out_features)

    @property
    def explained_variance(self) -> float:
        """The same as a number: a layer without a component explains nothing."""
        return self.explained or 0.0

    @property
    def converged(self) -> bool:
        """Whether its kept components passed tau."""
        return self.stop_reason == "converged"


@dataclass(frozen=True)
class ModuleKind:
    """The layers of one module kind. `spectrum` has the median ratio of each component over them."""

    name: str
    ranks: tuple[int, ...]
    parameters: int
    explained: float | None
    spectrum: tuple[float, ...]

    @property
    def median_rank(self) -> float:
        """Median rank."""
        return statistics.median(self.ranks)


def layer_rows(manifest: Mapping[str, Any]) -> tuple[LayerRow, ...]:
    """Return the layers in model order, whatever the manifest is: it never raises, and gives none where none are told.

    Model order is that of `decisive`, for a manifest sorts its keys; layers that it does not name come after, in the
    order of the numbers in their names.
    """
    described = manifest.get("layers")
    if not isinstance(described, dict):
        return ()
    listed = at(manifest, "decisive", "layers")
    ordered = [item[0] for item in listed if isinstance(item, list) and item] if isinstance(listed, list) else []
    named = dict.fromkeys(name for name in ordered if isinstance(name, str) and name in described)
    others = sorted((name for name in described if name not in named), key=_natural_order)
    return tuple(_layer_row(name, described[name]) for name in [*named, *others])


def described_layers(manifest: Mapping[str, Any], spectrum: Spectrum | None = None) -> tuple[DescribedLayer, ...]:
    """Return the layers in model order, with what a spectrum says of them.

    Raises:
        IntegrityError: the manifest does not describe layers, or one of them not wholly.
    """
    described = manifest.get("layers")
    if not isinstance(described, dict):
        raise IntegrityError("manifest.json does not describe layers; get the artifact again")
    rows = layer_rows(manifest)
    parts = (part for row in rows for part in row.name.split("."))
    if odd := next((part for part in parts if part.isdecimal() and len(part) > MOST_DIGITS), None):
        raise IntegrityError(f"manifest.json: names of layers are none ({odd[:40]}...); get the artifact again")
    where = places([row.name for row in rows])
    found = []
    for row in rows:
        if gone := [key for key in (*_COUNTS, "stop_reason") if getattr(row, key) is None]:
            raise IntegrityError(
                f"manifest.json: layer {row.name!r} is not described (its {gone[0]} is missing, or no such value can "
                "be); get the artifact again"
            )
        explained = None if spectrum is None else spectrum.explained.get(row.name)
        converged_at = {} if spectrum is None or row.stop_reason != "converged" else spectrum.steps_to_converge
        found.append(
            DescribedLayer(
                **vars(row), place=where[row.name], explained=explained, steps_to_converge=converged_at.get(row.name)
            )
        )
    return tuple(found)


def spectrum_of(content: bytes, manifest: Mapping[str, Any]) -> Spectrum:
    """Return the spectrum of an artifact, from the bytes of `spectrum.parquet`.

    Raises:
        IntegrityError: it is none, or larger than layers of this manifest can have, or that describes none.
    """
    from eva_dist.artifact.tables import read_spectrum

    most = most_components(described_layers(manifest))
    try:
        return read_spectrum(content, most)
    except (OSError, KeyError, TypeError, ValueError) as error:  # pyarrow's are some of them
        raise IntegrityError(f"{SPECTRUM_FILE} cannot be read ({error}); get the artifact again") from error


def most_components(layers: Sequence[LayerRow]) -> dict[str, int]:
    """Return how many components may be stored of each layer: as many as its input's members need."""
    of_group: dict[str, int] = {}
    for layer in layers:
        most = _MOST_COMPONENTS if layer.max_rank is None else min(layer.max_rank, _MOST_COMPONENTS)
        of_group[layer.input_group] = max(of_group.get(layer.input_group, 0), most)
    return {layer.name: of_group[layer.input_group] for layer in layers}


def module_kinds(layers: Sequence[DescribedLayer], spectrum: Spectrum | None = None) -> tuple[ModuleKind, ...]:
    """Return module kinds in the order of the layers."""
    ratios = {} if spectrum is None else spectrum.ratios
    kinds = []
    for kind in kinds_in_order({layer.name: layer.place for layer in layers}):
        own = [layer for layer in layers if layer.place.kind == kind]
        shares = [layer.explained for layer in own if layer.explained is not None]
        spectra = [ratios[layer.name] for layer in own if layer.name in ratios]
        longest = max(map(len, spectra), default=0)
        kinds.append(
            ModuleKind(
                name=kind,
                ranks=tuple(sorted(layer.rank for layer in own)),
                parameters=sum(layer.parameters for layer in own),
                explained=statistics.fmean(shares) if shares else None,
                spectrum=tuple(
                    statistics.median(one[component] for one in spectra if len(one) > component)
                    for component in range(longest)
                ),
            )
        )
    return tuple(kinds)


def rank_grid(layers: Sequence[DescribedLayer]) -> tuple[list[str], list[list[float | None]]]:
    """Return module kinds, and for each the mean rank in each transformer block, None where it has no layer."""
    grid = block_grid({layer.name: layer.place for layer in layers})
    blocks = 1 + max((block for block in grid.blocks if block is not None), default=-1)
    if blocks > _MOST_BLOCKS:  # no model has them: a manifest that would have us draw for ever
        return [], []
    ranks = {layer.name: float(layer.rank) for layer in layers}
    return list(grid.kinds), [[grid.mean_of(ranks, kind, block) for block in range(blocks)] for kind in grid.kinds]


def _layer_row(name: str, described: Any) -> LayerRow:
    told = described if isinstance(described, dict) else {}
    reason, group = told.get("stop_reason"), told.get("input_group")
    return LayerRow(
        name=name,
        input_group=group if isinstance(group, str) else name,
        stop_reason=shown(reason, 40) if isinstance(reason, str) else None,
        # Sizes of tensors are among them, and 4.0 is no size.
        **{key: as_count(v) if type(v := told.get(key)) is int else None for key in (*_COUNTS, "components_below_tau")},
    )


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Order numbers in names as numbers: block 2 before block 10."""
    parts = re.split(r"(\d+)", name)
    return [(len(digits := part.lstrip("0")), digits) if part.isdecimal() else (-1, part) for part in parts]
