"""`/compare`: two artifacts side by side, what differs first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.layer_names import places
from eva_dist.artifact.reading import Reading, shown
from eva_dist.gateway.catalogue.artifact import choose_form, sentence
from eva_dist.gateway.catalogue.detail import Detail
from eva_dist.gateway.catalogue.figures import Ends, convergence_figure, difference_map, rank_map, spectra_figure
from eva_dist.gateway.catalogue.layout import artifact_url, compare_url, counted, document, note, section, status
from eva_dist.render.heat_map import scale
from eva_dist.render.markup import element, figure, said, table
from eva_dist.render.words import NONE, share
from eva_dist.report.settings import flatten, same, text

if TYPE_CHECKING:
    from eva_dist.gateway.catalogue.cache import Listed

_MOST_LAYERS = 500
_MOST_FACTS = 400
_GROUPS = ("config.eva", "config.solver", "config.model", "config.data", "model", "tokenizer", "data", "versions")
_FIGURES = ("status", "steps", "tokens", "seconds", "world_size", "layers_converged", "layers_total", "rank_budget",
            "parameter_budget", "trainable_parameters", "largest_rank", "created", "method",
            "format_version")  # fmt: skip
Pair = tuple["Listed", "Listed"]


def compare_page(pair: Pair, details: tuple[Detail, Detail], near: Sequence[Listed]) -> str:
    """Return the page of two artifacts."""
    a, b = pair
    title = f"{a.revision.repo_id}: {a.revision.revision} and {b.revision.revision}"
    if a.revision.repo_id != b.revision.repo_id:
        title = f"{a.name} and {b.name}"
    heads = [_head(letter, one) for letter, one in zip("AB", pair, strict=True)]
    parts = [
        element("div", *heads, class_="two"),
        element("p", element("a", "Swap A and B", href=compare_url(b.name, a.name))),
    ]
    parts.append(section("Settings and figures", _settings(pair)))
    parts.append(section("Ranks", _ranks(pair, details)))
    if spectra := spectra_figure(
        [(f"{letter}: {one.name}", d.spectra) for letter, one, d in zip("AB", pair, details, strict=True)]
    ):
        parts.append(section("Spectra", spectra))
    curves = [(f"{letter}: {one.name}", d.convergence) for letter, one, d in zip("AB", pair, details, strict=True)]
    if convergence := convergence_figure(curves):
        parts.append(section("Convergence", convergence))
    parts.append(section("Compare with another", choose_form(a, near, b.name)))
    return document(title, *parts, trail=[(a.name, artifact_url(a)), ("compare", None)])


def choose_page(one: Listed | None, near: Sequence[Listed], problem: str = "") -> str:
    """Return the page on which the second artifact is chosen, or that says that there is none to compare."""
    told = element("p", said(problem)) if problem else ""
    back = element("p", element("a", "Tick two artifacts in the catalogue", href="/"), " and compare them.")
    if one is None:
        return document("Compare two artifacts", told, back, trail=[("compare", None)])
    form = choose_form(one, near) if near else note("There is no other artifact to compare it with.")
    return document("Compare two artifacts", told, form, back, trail=[(one.name, artifact_url(one)), ("compare", None)])


def _head(letter: str, one: Listed) -> str:
    link = element("a", said(one.name), href=artifact_url(one))
    return element("div", element("h2", f"{letter}: ", link), element("p", status(one.facts), " ", said(sentence(one))))


def _settings(pair: Pair) -> str:
    """Return what differs, then, behind a summary, what is the same."""
    a, b = (_facts(one) for one in pair)
    keys = list(dict.fromkeys([*a, *b]))[:_MOST_FACTS]
    differ = [key for key in keys if same(a.get(key)) != same(b.get(key))]
    alike = [key for key in keys if key not in set(differ)]
    rows = [[element("code", said(shown(key, 120))), _code(a.get(key)), _code(b.get(key))] for key in differ]
    parts = [table(f"What differs: {len(differ)} settings and figures", ["", "A", "B"], rows, class_="words")]
    if not differ:
        parts = [element("p", "They differ in nothing that their manifests say.")]
    if alike:
        rows = [[element("code", said(shown(key, 120))), _code(a.get(key))] for key in alike]
        inner = table("The same in both", ["", "A and B"], rows, class_="words")
        parts.append(element("details", element("summary", said(f"{len(alike)} that are the same")), inner))
    return "".join(parts)


def _facts(one: Listed) -> dict[str, Any]:
    reading = Reading(one.snapshot.manifest)
    found: dict[str, Any] = {}
    for group in _GROUPS:
        part = reading.found(group)
        if isinstance(part, dict):
            name = group.removeprefix("config.")
            flat = {f"{name}.{key}": value for key, value in flatten(part).items()}
            found |= {key: value for key, value in flat.items() if key not in found}
    return found | {key: value for key in _FIGURES if (value := reading.found(key)) is not None}


def _code(value: Any) -> str:
    if value is None:
        return NONE
    return element("code", said(shown(value if isinstance(value, str) else text(value, most=None))))


def _ranks(pair: Pair, details: tuple[Detail, Detail]) -> str:
    ranks = details[0].ranks, details[1].ranks
    where = places(list(dict.fromkeys([*ranks[0], *ranks[1]])))
    most = float(max([*ranks[0].values(), *ranks[1].values(), 1]))
    maps = []
    for letter, one, of_one in zip("AB", pair, ranks, strict=True):
        drawn = rank_map(f"Ranks of {letter}, {one.name}", of_one, Ends(0.0, most), where, width=600.0)
        maps.append(element("div", element("h3", said(f"{letter}: {one.name}")), drawn or note("No layer in a block.")))
    key = scale("0", f"{most:.0f}", "rank")
    beside = figure("A row a module kind, a column a transformer block.", key, element("div", *maps, class_="two"))
    common = [name for name in ranks[0] if name in ranks[1]]
    changed = [name for name in common if ranks[0][name] != ranks[1][name]]
    told = f"{len(changed):,} of {len(common):,} layers that both have differ in rank."
    only = [len(of_one) - len(common) for of_one in ranks]
    if any(only):
        told += f" {only[0]:,} are in A alone, {only[1]:,} in B alone."
    parts = [element("p", said(told)), beside, difference_map(*ranks), _kinds_table(ranks, details)]
    return "".join([*parts, _layers_table(changed, ranks)])


def _kinds_table(ranks: tuple[Mapping[str, int], Mapping[str, int]], details: tuple[Detail, Detail]) -> str:
    where = places(list(dict.fromkeys([*ranks[0], *ranks[1]])))
    rows, keys = [], []
    for kind in dict.fromkeys(place.kind for place in where.values()):
        totals, explained = [], []
        for of_one, detail in zip(ranks, details, strict=True):
            names = [name for name in of_one if where[name].kind == kind]
            totals.append(sum(of_one[name] for name in names))
            known = [detail.explained[name] for name in names if name in detail.explained]
            explained.append(sum(known) / len(known) if known else None)
        count = sum(place.kind == kind for place in where.values())
        change = totals[1] - totals[0]
        written = f"{change:+,}".replace("-", "−") if change else "0"
        rows.append(
            [
                element("code", said(shown(kind, 80))),
                str(count),
                *(f"{t:,}" for t in totals),
                written,
                *map(share, explained),
            ]
        )
        keys.append([kind, count, *totals, change, *explained])
    head = ["module kind", "layers", "total rank A", "total rank B", "B less A", "explained A", "explained B"]
    return table("Ranks and mean explained variance by module kind", head, rows, keys)


def _layers_table(changed: Sequence[str], ranks: tuple[Mapping[str, int], Mapping[str, int]]) -> str:
    if not changed:
        return ""
    a, b = ranks
    ordered = sorted(changed, key=lambda name: -abs(b[name] - a[name]))[:_MOST_LAYERS]
    rows = [[said(shown(n, 200)), str(a[n]), str(b[n]), f"{b[n] - a[n]:+d}".replace("-", "−")] for n in ordered]
    keys = [[shown(name, 200), a[name], b[name], b[name] - a[name]] for name in ordered]
    more = len(changed) - len(ordered)
    caption = "Those that differ most first" + (f"; {more:,} more are left out" if more else "")
    inner = table(caption, ["layer", "rank A", "rank B", "B less A"], rows, keys)
    return element("details", element("summary", said(f"{counted(len(changed))} layers that differ in rank")), inner)
