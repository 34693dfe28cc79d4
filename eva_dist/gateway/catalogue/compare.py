"""`/compare`: two artifacts side by side, what differs first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.layer_names import places
from eva_dist.artifact.reading import Reading
from eva_dist.gateway.catalogue.artifact import describe_in_words
from eva_dist.gateway.catalogue.detail import Detail
from eva_dist.gateway.catalogue.figures import convergence_figure, difference_map, spectra_figure
from eva_dist.gateway.catalogue.layout import render_page
from eva_dist.render.rank_maps import draw_rank_map
from eva_dist.report.settings import flatten, same

if TYPE_CHECKING:
    from eva_dist.gateway.catalogue.cache import ListedArtifact

_MOST_FACTS = 400
_GROUPS = ("config.eva", "config.solver", "config.model", "config.data", "model", "tokenizer", "data", "versions")
_FIGURES = ("status", "steps", "tokens", "seconds", "world_size", "layers_converged", "layers_total", "rank_budget",
            "parameter_budget", "trainable_parameters", "largest_rank", "created", "method",
            "format_version")  # fmt: skip
Pair = tuple["ListedArtifact", "ListedArtifact"]


@dataclass(frozen=True)
class _KindRanks:
    """What two artifacts give the layers of a module kind."""

    name: str
    layers: int
    totals: tuple[int, int]
    change: int
    explained: tuple[float | None, float | None]


@dataclass(frozen=True)
class _RankComparison:
    """Two artifacts' ranks: maps, and layers (name, rank in A, rank in B) that differ, those that differ most first."""

    common: int
    only_a: int
    only_b: int
    changed: Sequence[tuple[str, int, int]]
    most: int
    maps: Sequence[str]
    difference: str
    kinds: Sequence[_KindRanks]


def compare_page(pair: Pair, details: tuple[Detail, Detail], near: Sequence[ListedArtifact]) -> str:
    """Return the page of two artifacts."""
    a, b = pair
    title = f"{a.revision.repo_id}: {a.revision.revision} and {b.revision.revision}"
    if a.revision.repo_id != b.revision.repo_id:
        title = f"{a.name} and {b.name}"
    stated = _stated_facts(a), _stated_facts(b)
    keys = list(dict.fromkeys([*stated[0], *stated[1]]))[:_MOST_FACTS]
    differ = [key for key in keys if same(stated[0].get(key)) != same(stated[1].get(key))]
    names = [f"{letter}: {one.name}" for letter, one in zip("AB", pair, strict=True)]
    return render_page(
        "compare.html",
        title,
        trail=[(a.name, a.url), ("compare", None)],
        a=a,
        b=b,
        heads=[(one, describe_in_words(one)) for one in pair],
        differ=[(key, stated[0].get(key), stated[1].get(key)) for key in differ],
        alike=[(key, stated[0].get(key)) for key in keys if key not in set(differ)],
        ranks=_compare_ranks(pair, details),
        spectra=spectra_figure([(name, detail.spectra) for name, detail in zip(names, details, strict=True)]),
        convergence=convergence_figure(
            [(name, detail.convergence) for name, detail in zip(names, details, strict=True)]
        ),
        near=near,
    )


def choose_page(one: ListedArtifact | None, near: Sequence[ListedArtifact], problem: str = "") -> str:
    """Return the page on which the second artifact is chosen, or that says that there is none to compare."""
    trail: list[tuple[str, str | None]] = [] if one is None else [(one.name, one.url)]
    return render_page(
        "choose.html", "Compare two artifacts", trail=[*trail, ("compare", None)], one=one, near=near, problem=problem
    )


def _stated_facts(one: ListedArtifact) -> dict[str, Any]:
    reading = Reading(one.snapshot.manifest)
    facts: dict[str, Any] = {}
    for group in _GROUPS:
        part = reading.found(group)
        if isinstance(part, dict):
            name = group.removeprefix("config.")
            flat = {f"{name}.{key}": value for key, value in flatten(part).items()}
            facts |= {key: value for key, value in flat.items() if key not in facts}
    return facts | {key: value for key in _FIGURES if (value := reading.found(key)) is not None}


def _compare_ranks(pair: Pair, details: tuple[Detail, Detail]) -> _RankComparison:
    a, b = details[0].ranks, details[1].ranks
    where = places(list(dict.fromkeys([*a, *b])))
    most = max(*a.values(), *b.values(), 1, 1)
    common = [name for name in a if name in b]
    changed = [(name, a[name], b[name]) for name in common if a[name] != b[name]]
    return _RankComparison(
        common=len(common),
        only_a=len(a) - len(common),
        only_b=len(b) - len(common),
        changed=sorted(changed, key=lambda layer: -abs(layer[2] - layer[1])),
        most=most,
        maps=[
            draw_rank_map(f"Ranks of {letter}, {one.name}", ranks, (0.0, float(most)), where, width=600.0)
            for letter, one, ranks in zip("AB", pair, (a, b), strict=True)
        ],
        difference=difference_map(a, b),
        kinds=[_compare_kind(kind, (a, b), details, where) for kind in dict.fromkeys(p.kind for p in where.values())],
    )


def _compare_kind(
    kind: str, ranks: tuple[Mapping[str, int], Mapping[str, int]], details: tuple[Detail, Detail], where: Mapping
) -> _KindRanks:
    def total(of_one: Mapping[str, int]) -> int:
        return sum(rank for name, rank in of_one.items() if where[name].kind == kind)

    def mean_explained(of_one: Mapping[str, int], detail: Detail) -> float | None:
        known = [detail.explained[n] for n in of_one if where[n].kind == kind and n in detail.explained]
        return sum(known) / len(known) if known else None

    totals = total(ranks[0]), total(ranks[1])
    explained = mean_explained(ranks[0], details[0]), mean_explained(ranks[1], details[1])
    count = sum(place.kind == kind for place in where.values())
    return _KindRanks(kind, count, totals, totals[1] - totals[0], explained)
