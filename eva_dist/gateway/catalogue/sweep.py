"""`/sweep/...`: the artifacts that came of one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eva_dist.artifact.reading import Reading, shown
from eva_dist.gateway.catalogue.detail import Detail
from eva_dist.gateway.catalogue.layout import artifact_url, counted, document, note, pick_box, section, status
from eva_dist.render.markup import element, said, table
from eva_dist.render.rank_maps import PointRanks, draw_rank_maps
from eva_dist.render.words import NONE, amount, seconds, share
from eva_dist.report.settings import flatten, text

if TYPE_CHECKING:
    from eva_dist.gateway.catalogue.cache import Listed

MOST_POINTS = 60
_MOST_GENERATIONS = 20
_SETTINGS = ("r", "rho", "tau", "whiten", "budget")


def passes(listed: Sequence[Listed]) -> dict[str, list[Listed]]:
    """Return the artifacts of each pass by its key; one that was derived belongs to its source's pass."""
    known = {one.facts.fingerprint: one for one in listed}
    found: dict[str, list[Listed]] = {}
    for one in listed:
        if key := _key(one, known):
            found.setdefault(key, []).append(one)
    return found


def _key(one: Listed, known: Mapping[str, Listed]) -> str | None:
    for _ in range(_MOST_GENERATIONS):
        derived = [ancestor for ancestor in one.facts.ancestors if ancestor.how == "derived"]
        source = known.get(derived[0].fingerprint) if derived else None
        if source is None or source is one:
            return one.facts.own_pass
        one = source
    return None


def sweep_page(points: Sequence[Listed], details: Sequence[Detail], total: int) -> str:
    """Return the page; `points` are those that are shown, of `total`."""
    varied = [key for key in _SETTINGS if len({one.facts.settings.get(key) for one in points}) > 1]
    over = " and ".join(filter(None, [", ".join(varied[:-1]), *varied[-1:]]))
    title = f"Sweep over {over}: {total:,} artifacts" if over else f"{total:,} artifacts of one pass"
    first = points[0].facts
    lead = f"All come of the same pass: {first.model_name or 'a model'} on {first.data_name or 'its data'}"
    lead += f", solver {first.solver}." if first.solver else "."
    if total > len(points):
        lead += f" The first {len(points)} are shown."
    parts = [element("p", said(lead), class_="sentence"), section("Points", _table(points, details, varied))]
    rows = [
        PointRanks(str(at), f"point {at}: {_label(one, varied)}", detail.ranks)
        for at, (one, detail) in enumerate(zip(points, details, strict=True), start=1)
        if detail.ranks
    ]
    if rows:
        parts.append(section("Ranks by point and layer", draw_rank_maps(rows)))
    parts.append(section("What the points share", _shared(points)))
    return document(title, *parts, trail=[("sweep", None)])


def _label(one: Listed, varied: Sequence[str]) -> str:
    said_of = [f"{key}={one.facts.settings[key]}" for key in varied if key in one.facts.settings]
    return " ".join(said_of) or one.name


def _table(points: Sequence[Listed], details: Sequence[Detail], varied: Sequence[str]) -> str:
    rows, keys = [], []
    one_repo = len({one.revision.repo_id for one in points}) == 1
    for at, (one, detail) in enumerate(zip(points, details, strict=True), start=1):
        facts = one.facts
        link = element("a", said(one.revision.revision if one_repo else one.name), href=artifact_url(one))
        values = [facts.settings.get(key, NONE) for key in varied]
        figures = [
            counted(facts.total_rank),
            NONE if facts.parameters is None else amount(facts.parameters),
            share(detail.mean_explained, 2),
            counted(facts.steps),
            NONE if facts.seconds is None else seconds(facts.seconds),
        ]
        rows.append([f"{at}", pick_box(one), link, *map(said, values), status(facts), *figures])
        told = facts.total_rank, facts.parameters, detail.mean_explained, facts.steps, facts.seconds
        keys.append([at, None, one.name, *values, facts.status, *told])
    figures_ = ["total rank", "parameters", "explained", "steps", "pass time"]
    head = ["point", "compare", "artifact", *varied, "status", *figures_]
    form = element("form", id="compare", action="/compare", method="get")
    go = element("button", "Compare the two that are ticked", type="submit", form="compare", id="compare-go")
    explained = note(
        "Explained: the mean over the layers of the share of the inputs' variance that the kept components explain."
    )
    return (
        form
        + table("Tick two to compare them", head, rows, keys, class_="sortable points")
        + element("div", go, class_="foot")
        + explained
    )


def _shared(points: Sequence[Listed]) -> str:
    """Return the facts that all manifests state alike."""
    stated = [_facts(one) for one in points]
    rows = [
        [element("code", said(shown(key, 120))), element("code", said(shown(value)))]
        for key, value in stated[0].items()
        if all(other.get(key) == value for other in stated)
    ]
    return table("What they were computed from", ["fact or setting", "value"], rows[:200], class_="words")


def _facts(one: Listed) -> dict[str, str]:
    reading, found = Reading(one.snapshot.manifest), {}
    for group in ("model", "tokenizer", "data", "config.data", "config.solver", "config.eva"):
        part = reading.found(group)
        if isinstance(part, dict):
            for key, value in flatten(part).items():
                if value is not None:
                    found[f"{group.removeprefix('config.')}.{key}"] = (
                        value if isinstance(value, str) else text(value, most=None)
                    )
    return found
