"""The page's tables: the points, those without an artifact, what settings change, what is shared."""

from typing import Any

from eva_dist.report.figures import Comparison, PointFigures
from eva_dist.report.findings import name
from eva_dist.report.markup import element, said, table
from eva_dist.report.points import Point
from eva_dist.report.settings import shared, short, text
from eva_dist.report.words import NONE, amount, counted, overlap, seconds, share, steps

_FIGURES = ("layers converged", "total rank", "parameters", "explained", "steps", "pass time", "overlap", "same ranks")
_GOOD = ("done", "cached")


def points_table(found: Comparison) -> str:
    """Return a row a point: settings, how it ended, figures, where its artifact is, the line that loads it."""
    names = short(found.varied)
    head = ["point", *(said(names[key]) for key in found.varied), "status", *_FIGURES, "artifact", "load it"]
    rows, keys = [], []
    for place, (point, figures) in enumerate(zip(found.points, found.figures, strict=True)):
        settings = [point.settings.get(key) for key in found.varied]
        cells = [said(text(point.settings[key])) if key in point.settings else NONE for key in found.varied]
        number = str(point.number) + (" (reference)" if place == found.reference and len(found.compared) > 1 else "")
        status = element("span", said(point.status.replace("_", " ")), class_=_status_class(point))
        rows.append([said(number), *cells, status, *map(said, _figures(figures)), _link(point), _load(point)])
        revision = point.result.revision if point.result else None
        keys.append([point.number, *settings, point.status, *_sort_keys(figures), revision, None])
    return table(f"All {counted(len(found.points), 'point')} of the sweep", head, rows, keys)


def failures(found: Comparison) -> str:
    """Return what became of the points that have no artifact, with the whole message."""
    items = []
    for place, point in enumerate(found.points):
        if point.artifact is not None:
            continue
        told = "It was never begun, or left nothing behind." if point.problem is None else None
        message = (
            element("p", said(told))
            if point.problem is None
            else element("p", element("code", said(point.problem.type))) + element("pre", said(point.problem.message))
        )
        heading = element("h3", said(f"{name(found, place)}: {point.status.replace('_', ' ')}".capitalize()))
        given = element("p", element("code", said(" ".join(point.overrides))), class_="note")
        items.append(element("li", heading, message, given if point.overrides else ""))
    return element("ul", *items, class_="failures")


def effects_table(found: Comparison) -> str:
    """Return a row a varied setting: from its first value to its last, all else being equal."""
    head = ["setting", "from → to", "pairs", "steps", "pass time", "parameters", "explained", "overlap", "same ranks"]
    names = short(found.varied)
    rows = [
        [
            element("code", said(names[effect.key])),
            said(f"{text(effect.low)} → {text(effect.high)}"),
            str(effect.pairs),
            said(_change(steps(effect.before.steps), steps(effect.after.steps))),
            said(_change(seconds(effect.before.pass_seconds), seconds(effect.after.pass_seconds))),
            said(_change(amount(effect.before.trainable_parameters), amount(effect.after.trainable_parameters))),
            said(_change(share(effect.before.explained_variance, 2), share(effect.after.explained_variance, 2))),
            said(overlap(effect.overlap)),
            said(share(effect.equal_ranks, 0)),
        ]
        for effect in found.effects
    ]
    caption = "Means over the pairs of points that differ in this setting alone; overlap and same ranks are a pair's."
    return table(caption, head, rows)


def shared_table(found: Comparison) -> str:
    """Return model, data and solver, then every setting that all points have in common."""
    facts = _facts(found)
    settings = shared(found.points)
    rows = [[said(fact), element("code", said(value))] for fact, value in facts]
    listed = [[element("code", said(key)), element("code", said(_whole(value)))] for key, value in settings.items()]
    parts = [table("What they were computed from", ["fact", "value"], rows, class_="words")] if rows else []
    if listed:
        inner = table("Settings that all points share", ["setting", "value"], listed, class_="words")
        parts.append(element("details", element("summary", f"{counted(len(listed), 'setting')} in common"), inner))
    return "".join(parts) or element("p", "Nothing is known of their settings.")


def _facts(found: Comparison) -> list[tuple[str, str]]:
    """Return the facts of the run that all artifacts state alike, and the shared settings that say the most."""
    facts = []
    manifests = [point.artifact.manifest for point in found.points if point.artifact is not None]
    for group in ("model", "tokenizer", "data", "versions"):
        stated = [manifest.get(group) for manifest in manifests]
        of_first = stated[0] if stated and isinstance(stated[0], dict) else {}
        for key, value in of_first.items():
            if value is not None and all(isinstance(one, dict) and one.get(key) == value for one in stated):
                facts.append((f"{group}: {key}", _whole(value)))
    settings = shared(found.points)
    telling = ("data.path", "data.step_size", "data.max_length", "solver.name", "eva.r", "eva.rho", "eva.tau")
    return facts + [(key, _whole(settings[key])) for key in telling if key in settings]


def _whole(value: Any) -> str:
    return value if isinstance(value, str) else text(value, most=None)


def _status_class(point: Point) -> str:
    return "status" if point.status in _GOOD else "status bad"


def _figures(figures: PointFigures | None) -> list[str]:
    if figures is None:
        return [NONE] * len(_FIGURES)
    return [
        f"{figures.layers_converged}/{figures.layers}",
        f"{figures.total_rank:,}",
        f"{figures.trainable_parameters:,}",
        share(figures.explained_variance, 2),
        f"{figures.steps:,}",
        seconds(figures.pass_seconds),
        overlap(figures.overlap),
        share(figures.equal_ranks, 0),
    ]


def _sort_keys(figures: PointFigures | None) -> list[Any]:
    if figures is None:
        return [None] * len(_FIGURES)
    return [
        figures.layers_converged,
        figures.total_rank,
        figures.trainable_parameters,
        figures.explained_variance,
        figures.steps,
        figures.pass_seconds,
        figures.overlap,
        figures.equal_ranks,
    ]


def _link(point: Point) -> str:
    if point.artifact is None or point.result is None:
        return NONE
    return element("a", said(point.result.revision), href=point.artifact.url, title=point.result.repo_id)


def _load(point: Point) -> str:
    if point.artifact is None:
        return NONE
    line = f"eva_dist.load_eva_state_dict({point.artifact.url!r})"
    return element(
        "details", element("summary", "Python", aria_label="Python line that loads it"),
        element("code", said(line), class_="load"), class_="load",
    )  # fmt: skip


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
