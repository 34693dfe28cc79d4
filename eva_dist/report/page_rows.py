"""The rows of the page's tables: the points, what settings change, what is shared."""

from dataclasses import dataclass
from typing import Any

from eva_dist.render.words import NONE, amount, overlap, seconds, share, steps
from eva_dist.report.compare_points import Comparison, Effect, PointFigures
from eva_dist.report.point import Point
from eva_dist.report.settings import shared, short, text, whole_text
from eva_dist.report.table import FIGURES, in_words

_GOOD = ("done", "cached")


@dataclass(frozen=True)
class ArtifactLink:
    """Where a point's artifact is, and the line of Python that loads it."""

    repo_id: str
    revision: str
    url: str

    @property
    def load(self) -> str:
        """The line."""
        return f"eva_dist.load_eva_state_dict({self.url!r})"


@dataclass(frozen=True)
class PointRow:
    """A point; `settings` and `figures` are values, by which a reader can sort, and how they are written."""

    point: Point
    is_reference: bool
    status: str
    is_good: bool
    settings: list[tuple[Any, str]]
    figures: list[tuple[Any, str]]
    link: ArtifactLink | None

    @property
    def number(self) -> int:
        """The point's number."""
        return self.point.number


def point_rows(found: Comparison) -> list[PointRow]:
    """Return a row a point: settings, how it ended, figures, where its artifact is."""
    rows = []
    for place, (point, figures) in enumerate(zip(found.points, found.figures, strict=True)):
        artifact, result = point.artifact, point.result
        rows.append(
            PointRow(
                point=point,
                is_reference=place == found.reference and len(found.compared) > 1,
                status=_status_in_words(point, figures),
                is_good=point.status in _GOOD,
                settings=[
                    (point.settings.get(key), text(point.settings[key]) if key in point.settings else NONE)
                    for key in found.varied
                ],
                figures=list(zip(_figure_values(figures), in_words(figures), strict=True)),
                link=ArtifactLink(result.repo_id, result.revision, artifact.url) if artifact and result else None,
            )
        )
    return rows


def effect_rows(found: Comparison) -> list[tuple[str, list[str]]]:
    """Return a row a varied setting: from its first value to its last, all else being equal."""
    names = short(found.varied)
    return [(names[effect.key], _effect_cells(effect)) for effect in found.effects]


def _effect_cells(effect: Effect) -> list[str]:
    before, after = effect.before, effect.after
    return [
        f"{text(effect.low)} → {text(effect.high)}",
        str(effect.pairs),
        _change_in_words(steps(before.steps), steps(after.steps)),
        _change_in_words(seconds(before.pass_seconds), seconds(after.pass_seconds)),
        _change_in_words(amount(before.trainable_parameters), amount(after.trainable_parameters)),
        _change_in_words(share(before.explained_variance, 2), share(after.explained_variance, 2)),
        overlap(effect.overlap),
        share(effect.equal_ranks, 0),
    ]


_TELLING = (
    *("model: id", "model: revision", "model: weights", "model.dtype", "model.config_overrides.num_hidden_layers"),
    *("data.path", "data: digest", "data: samples", "data.max_length", "data.step_size", "data.seed"),
    *("solver.name", "eva.r", "eva.rho", "eva.tau", "eva.whiten", "eva.target_modules", "eva.max_steps"),
)
"""Facts (of the manifests) and settings that a reader looks for first."""


def shared_facts(found: Comparison) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return what all points have in common: model, data and solver, then every other fact and setting."""
    facts = _stated_alike(found) | {key: whole_text(value) for key, value in shared(found.points).items()}
    telling = [(key, facts.pop(key)) for key in _TELLING if key in facts]
    return telling, list(facts.items())


def _stated_alike(found: Comparison) -> dict[str, str]:
    """Return the facts of the runs that all artifacts state alike."""
    facts = {}
    manifests = [point.artifact.manifest for point in found.points if point.artifact is not None]
    for group in ("model", "tokenizer", "data", "versions"):
        stated = [manifest.get(group) for manifest in manifests]
        of_first = stated[0] if stated and isinstance(stated[0], dict) else {}
        for key, value in of_first.items():
            if value is not None and all(isinstance(one, dict) and one.get(key) == value for one in stated):
                facts[f"{group}: {key}"] = whole_text(value)
    return facts


def _status_in_words(point: Point, figures: PointFigures | None) -> str:
    """Return how it ended, and how many layers converged where not all did."""
    words = point.status.replace("_", " ")
    if figures is not None and figures.layers_converged < figures.layers:
        words += f" {figures.layers_converged}/{figures.layers}"
    return words


def _figure_values(figures: PointFigures | None) -> list[Any]:
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


def _change_in_words(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
