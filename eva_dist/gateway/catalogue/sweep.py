"""`/sweep/...`: the artifacts that came of one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eva_dist.artifact.reading import Reading
from eva_dist.gateway.catalogue.detail import Detail
from eva_dist.gateway.catalogue.layout import render_page
from eva_dist.render.rank_maps import PointRanks, draw_rank_maps
from eva_dist.render.words import listed
from eva_dist.report.settings import flatten_parts, whole_text

if TYPE_CHECKING:
    from eva_dist.gateway.catalogue.cache import ListedArtifact

MOST_POINTS = 60
_MOST_GENERATIONS = 20
_MOST_FACTS = 200
_SETTINGS = ("r", "rho", "tau", "whiten", "budget")


def passes(artifacts: Sequence[ListedArtifact]) -> dict[str, list[ListedArtifact]]:
    """Return the artifacts of each pass by its key; one that was derived belongs to its source's pass."""
    known = {one.facts.fingerprint: one for one in artifacts}
    found: dict[str, list[ListedArtifact]] = {}
    for one in artifacts:
        if key := _pass_key(one, known):
            found.setdefault(key, []).append(one)
    return found


def _pass_key(one: ListedArtifact, known: Mapping[str, ListedArtifact]) -> str | None:
    for _ in range(_MOST_GENERATIONS):
        derived = [ancestor for ancestor in one.facts.ancestors if ancestor.how == "derived"]
        source = known.get(derived[0].fingerprint) if derived else None
        if source is None or source is one:
            return one.facts.own_pass
        one = source
    return None


def sweep_page(points: Sequence[ListedArtifact], details: Sequence[Detail], total: int) -> str:
    """Return the page; `points` are those that are shown, of `total`."""
    varied = [key for key in _SETTINGS if len({one.facts.settings.get(key) for one in points}) > 1]
    over = listed(varied)
    rows = [
        PointRanks(str(at), f"point {at}: {_point_label(one, varied)}", detail.ranks)
        for at, (one, detail) in enumerate(zip(points, details, strict=True), start=1)
        if detail.ranks
    ]
    return render_page(
        "sweep.html",
        f"Sweep over {over}: {total:,} artifacts" if over else f"{total:,} artifacts of one pass",
        trail=[("sweep", None)],
        points=list(zip(points, details, strict=True)),
        total=total,
        first=points[0].facts,
        varied=varied,
        one_repo=len({one.revision.repo_id for one in points}) == 1,
        rank_maps=draw_rank_maps(rows) if rows else "",
        shared=_shared_facts(points)[:_MOST_FACTS],
    )


def _point_label(one: ListedArtifact, varied: Sequence[str]) -> str:
    settings = [f"{key}={one.facts.settings[key]}" for key in varied if key in one.facts.settings]
    return " ".join(settings) or one.name


def _shared_facts(points: Sequence[ListedArtifact]) -> list[tuple[str, str]]:
    """Return the facts that all manifests state alike."""
    first, *others = [_stated_facts(one) for one in points]
    return [(key, value) for key, value in first.items() if all(other.get(key) == value for other in others)]


def _stated_facts(one: ListedArtifact) -> dict[str, str]:
    groups = ("model", "tokenizer", "data", "config.data", "config.solver", "config.eva")
    stated = flatten_parts(
        Reading(one.snapshot.manifest), {group: f"{group.removeprefix('config.')}." for group in groups}
    )
    return {key: whole_text(value) for key, value in stated if value is not None}
