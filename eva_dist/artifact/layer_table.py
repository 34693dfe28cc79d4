"""What an artifact is, from its manifest and its spectrum: facts, and ranks by layer and by module kind. No torch."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eva_dist.artifact.listing import at
from eva_dist.artifact.places import Place, kinds_in_order, places
from eva_dist.errors import IntegrityError

Ratios = Mapping[str, Sequence[float]]
"""Layer name to the explained-variance ratios of its components, strongest first, those without a rank too."""
_MOST_BLOCKS = 10_000


@dataclass(frozen=True)
class Layer:
    """One layer: what EVA gave it. `explained` is the share of its input's variance that its rank covers."""

    name: str
    place: Place
    rank: int
    r: int
    max_rank: int
    in_features: int
    out_features: int
    updates: int
    stop_reason: str
    explained: float | None

    @property
    def parameters(self) -> int:
        """LoRA's A and B."""
        return self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True)
class Kind:
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


def layers_of(manifest: Mapping[str, Any], ratios: Ratios | None = None) -> tuple[Layer, ...]:
    """Return the layers in model order.

    Raises:
        IntegrityError: the manifest does not describe layers.
    """
    described = manifest.get("layers")
    if not isinstance(described, dict):
        raise IntegrityError("manifest.json does not describe layers; get the artifact again")
    order = [entry[0] for entry in at(manifest, "decisive", "layers") or () if isinstance(entry, list) and entry]
    try:
        known = len(order) == len(described) and set(map(str, order)) == set(described)
        names = order if known else sorted(described, key=_natural)
        where = places(names)
    except (TypeError, ValueError, AttributeError) as error:  # a number of 5,000 digits
        raise IntegrityError(f"manifest.json: names of layers are none ({error})") from error
    found = []
    for name in names:
        try:
            numbers = {
                key: _count(described[name][key])
                for key in ("rank", "r", "max_rank", "in_features", "out_features", "updates")
            }
            reason = str(described[name]["stop_reason"])
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"manifest.json: layer {name!r} is not described ({error!r})") from error
        own = None if ratios is None else ratios.get(name)
        explained = None if own is None else float(sum(own[: numbers["rank"]]))
        found.append(Layer(name=name, place=where[name], **numbers, stop_reason=reason, explained=explained))
    return tuple(found)


def kinds_of(layers: Sequence[Layer], ratios: Ratios | None = None) -> tuple[Kind, ...]:
    """Return module kinds in the order of the layers."""
    kinds = []
    for kind in kinds_in_order({layer.name: layer.place for layer in layers}):
        own = [layer for layer in layers if layer.place.kind == kind]
        shares = [layer.explained for layer in own if layer.explained is not None]
        spectra = [ratios[layer.name] for layer in own if layer.name in ratios] if ratios else []
        longest = max(map(len, spectra), default=0)
        kinds.append(
            Kind(
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


def rank_grid(layers: Sequence[Layer]) -> tuple[list[str], list[list[float | None]]]:
    """Return module kinds, and for each the mean rank in each transformer block, None where it has no layer."""
    placed = [layer for layer in layers if layer.place.block is not None]
    kinds = kinds_in_order({layer.name: layer.place for layer in placed})
    blocks = 1 + max((layer.place.block or 0 for layer in placed), default=-1)
    if blocks > _MOST_BLOCKS:  # no model has them: a manifest that would have us draw for ever
        return [], []
    ranks: dict[tuple[str, int], list[int]] = {}
    for layer in placed:
        ranks.setdefault((layer.place.kind, layer.place.block or 0), []).append(layer.rank)
    return kinds, [
        [statistics.fmean(ranks[kind, block]) if (kind, block) in ranks else None for block in range(blocks)]
        for kind in kinds
    ]


def read_ratios(spectrum: bytes, manifest: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the explained-variance ratios of each layer, from `spectrum.parquet`.

    Raises:
        IntegrityError: it is none, or larger than layers of this manifest can have.
    """
    from eva_dist.artifact.columns import coded, numbers, read_columns

    try:
        most = _most_components(layers_of(manifest))
        table = read_columns(spectrum, ["layer", "explained_variance_ratio"], sum(most.values()))
        names, layer_R = coded(table["layer"])
        if unknown := next((name for name in names if name not in most), None):
            raise ValueError(f"it names {unknown[:100]!r}, which is no layer of the manifest")
        found: dict[str, list[float]] = {name: [] for name in names}
        for at_, ratio in zip(layer_R.tolist(), numbers(table["explained_variance_ratio"]).tolist(), strict=True):
            found[names[at_]].append(ratio)
    except (OSError, KeyError, TypeError, ValueError) as error:  # pyarrow's are some of them
        raise IntegrityError(f"spectrum.parquet cannot be read ({error}); get the artifact again") from error
    return found


def _most_components(layers: Sequence[Layer]) -> dict[str, int]:
    """Return how many components may be stored of each layer: as many as any layer needs, for inputs are shared."""
    most = max((layer.max_rank for layer in layers), default=0)
    return {layer.name: most for layer in layers}


def _natural(name: str) -> list[tuple[int, str]]:
    """Order numbers in names as numbers: block 2 before block 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError(value)
    return value
