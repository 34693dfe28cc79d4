"""`/compare`: two artifacts side by side, what differs first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from eva_dist.artifact.layer_names import Place, kinds_in_order, places
from eva_dist.artifact.reading import Reading
from eva_dist.gateway.catalogue.artifact import describe_in_words
from eva_dist.gateway.catalogue.detail import Detail
from eva_dist.gateway.catalogue.figures import convergence_figure, spectra_figure
from eva_dist.gateway.catalogue.layout import render_fragment, render_page
from eva_dist.render.colours import DIFFERENCE
from eva_dist.render.rank_maps import draw_rank_map
from eva_dist.report.settings import flatten_parts, same

if TYPE_CHECKING:
    from eva_dist.gateway.catalogue.cache import ListedArtifact

_MOST_FACTS = 400
_GROUPS = ("config.eva", "config.solver", "config.model", "config.data", "model", "tokenizer", "data", "versions")
_FIGURES = ("status", "steps", "tokens", "seconds", "world_size", "layers_converged", "layers_total", "rank_budget",
            "parameter_budget", "trainable_parameters", "largest_rank", "created", "method",
            "format_version")  # fmt: skip
Pair = tuple["ListedArtifact", "ListedArtifact"]


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
    reading, facts = Reading(one.snapshot.manifest), dict[str, Any]()
    for key, value in flatten_parts(reading, {group: f"{group.removeprefix('config.')}." for group in _GROUPS}):
        facts.setdefault(key, value)
    return facts | {key: value for key in _FIGURES if (value := reading.found(key)) is not None}


def _compare_ranks(pair: Pair, details: tuple[Detail, Detail]) -> Markup:
    """Return two artifacts' ranks: maps, and layers (name, rank in A, rank in B) that differ, the most first."""
    a, b = details[0].ranks, details[1].ranks
    where = places(list(dict.fromkeys([*a, *b])))
    most = max(*a.values(), *b.values(), 1, 1)
    change = {name: float(b[name] - a[name]) for name in a if name in b}
    most_change = max([1.0, *map(abs, change.values())])
    drawn = "Difference of ranks by module kind and block", change, (-most_change, most_change), places(list(change))
    return render_fragment(
        "rank_changes.html",
        names=[one.name for one in pair],
        common=len(change),
        only_a=len(a) - len(change),
        only_b=len(b) - len(change),
        changed=sorted([(n, a[n], b[n]) for n in change if change[n]], key=lambda layer: -abs(layer[2] - layer[1])),
        most=most,
        maps=[
            draw_rank_map(f"Ranks of {letter}, {one.name}", ranks, (0.0, float(most)), where, width=600.0)
            for letter, one, ranks in zip("AB", pair, (a, b), strict=True)
        ],
        difference=draw_rank_map(*drawn, DIFFERENCE),
        most_change=f"{most_change:.0f}",
        kinds=[_compare_kind(kind, details, where) for kind in kinds_in_order(where)],
    )


def _compare_kind(
    kind: str, details: tuple[Detail, Detail], where: Mapping[str, Place]
) -> tuple[str, int, list[int], list[float | None]]:
    """Return a module kind, how many layers are of it, and their total ranks and mean explained variance in A and B."""
    totals, explained = list[int](), list[float | None]()
    for detail in details:
        ranks = {name: rank for name, rank in detail.ranks.items() if where[name].kind == kind}
        known = [detail.explained[name] for name in ranks if name in detail.explained]
        totals.append(sum(ranks.values()))
        explained.append(sum(known) / len(known) if known else None)
    return kind, sum(place.kind == kind for place in where.values()), totals, explained
