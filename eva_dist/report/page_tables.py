"""The page's tables: the points, those without an artifact, what settings change, what is shared."""

from typing import Any

from eva_dist.render.markup import element, said, table
from eva_dist.render.words import NONE, amount, counted, overlap, seconds, share, steps
from eva_dist.report.compare_points import Comparison, PointFigures
from eva_dist.report.findings import name
from eva_dist.report.point import Point
from eva_dist.report.settings import shared, short, text
from eva_dist.report.table import FIGURES, in_words

_GOOD = ("done", "cached")


def points_table(found: Comparison) -> str:
    """Return a row a point: settings, how it ended, figures, where its artifact is, the line that loads it."""
    names = short(found.varied)
    head = ["point", *(said(names[key]) for key in found.varied), "status", *FIGURES, "artifact", "load it"]
    rows, keys = [], []
    for place, (point, figures) in enumerate(zip(found.points, found.figures, strict=True)):
        settings = [point.settings.get(key) for key in found.varied]
        cells = [said(text(point.settings[key])) if key in point.settings else NONE for key in found.varied]
        number = str(point.number) + (" (ref.)" if place == found.reference and len(found.compared) > 1 else "")
        rows.append(
            [said(number), *cells, _status(point, figures), *map(said, in_words(figures)), _link(point), _load(point)]
        )
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
    """Return model, data and solver, then every fact and setting that all points have in common."""
    facts = {**_facts(found), **{key: _whole(value) for key, value in shared(found.points).items()}}
    first = [key for key in _TELLING if key in facts]
    rest = [key for key in facts if key not in first]
    if not facts:
        return element("p", "Nothing is known of their settings.")
    tables = [
        table(caption, ["fact or setting", "value"], [[_code(key), _code(facts[key])] for key in keys], class_="words")
        for caption, keys in (("What they were computed from", first), ("All else that they share", rest))
    ]
    more = element("details", element("summary", f"{counted(len(rest), 'fact')} and settings more"), tables[1])
    return (tables[0] if first else "") + (more if rest else "")


_TELLING = (
    *("model: id", "model: revision", "model: weights", "model.dtype", "model.config_overrides.num_hidden_layers"),
    *("data.path", "data: digest", "data: samples", "data.max_length", "data.step_size", "data.seed"),
    *("solver.name", "eva.r", "eva.rho", "eva.tau", "eva.whiten", "eva.target_modules", "eva.max_steps"),
)
"""Facts (of the manifests) and settings that a reader looks for first."""


def _facts(found: Comparison) -> dict[str, str]:
    """Return the facts of the runs that all artifacts state alike."""
    facts = {}
    manifests = [point.artifact.manifest for point in found.points if point.artifact is not None]
    for group in ("model", "tokenizer", "data", "versions"):
        stated = [manifest.get(group) for manifest in manifests]
        of_first = stated[0] if stated and isinstance(stated[0], dict) else {}
        for key, value in of_first.items():
            if value is not None and all(isinstance(one, dict) and one.get(key) == value for one in stated):
                facts[f"{group}: {key}"] = _whole(value)
    return facts


def _code(value: str) -> str:
    return element("code", said(value))


def _whole(value: Any) -> str:
    return value if isinstance(value, str) else text(value, most=None)


def _status(point: Point, figures: PointFigures | None) -> str:
    """Return how it ended, and how many layers converged where not all did."""
    told = point.status.replace("_", " ")
    if figures is not None and figures.layers_converged < figures.layers:
        told += f" {figures.layers_converged}/{figures.layers}"
    return element("span", said(told), class_="status" if point.status in _GOOD else "status bad")


def _sort_keys(figures: PointFigures | None) -> list[Any]:
    if figures is None:
        return [None] * len(FIGURES)
    return [
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
    return element(
        "a",
        said(point.result.revision),
        href=point.artifact.url,
        title=f"{point.result.repo_id} {point.result.revision}",
    )


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
