"""What a report says of the points of a sweep, in numbers; nothing is read or written here but tensors."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from eva_dist.report.agreement import Agreement, agreement
from eva_dist.report.point import Point, StoredArtifact
from eva_dist.report.settings import is_number, same, values_in_order, varied


@dataclass(frozen=True)
class PointFigures:
    """Figures of one point that has an artifact.

    `explained_variance` is the mean over its layers of the share that their kept components explain.
    `overlap` and `equal_ranks` compare it with the reference point; None where nothing is common.
    `steps` and `pass_seconds` are those of the pass that made the artifact, be it answered from the store.
    """

    layers: int
    layers_converged: int
    total_rank: int
    largest_rank: int
    layers_of_rank_0: int
    trainable_parameters: int
    explained_variance: float
    steps: int
    tokens: int
    pass_seconds: float
    seconds: float
    overlap: float | None = None
    equal_ranks: float | None = None


@dataclass(frozen=True)
class Means:
    """Means over points."""

    steps: float
    pass_seconds: float
    trainable_parameters: float
    explained_variance: float


@dataclass(frozen=True)
class Effect:
    """What going from one value of a setting to another does, all other varied settings being equal.

    `before` and `after` are means over `pairs` pairs of points; their `overlap` and `equal_ranks`
    compare the two points of a pair.
    """

    key: str
    low: Any
    high: Any
    pairs: int
    before: Means
    after: Means
    overlap: float | None
    equal_ranks: float | None


@dataclass(frozen=True)
class Comparison:
    """A sweep's points, compared.

    Attributes:
        points: all of them, by number.
        varied: keys of the settings that differ.
        figures: of each point, in the same order; None where there is no artifact.
        compared: places (in `points`) of those with figures: the rows of `agreement`.
        agreement: of every pair of `compared`.
        reference: place of the point that the others are compared with, the dearest: of those with the most
            layers the one with the highest tau, then the highest rho, r and number of parameters, then the first.
        effects: of each varied setting, from its first value to its last.
    """

    points: tuple[Point, ...]
    varied: tuple[str, ...]
    figures: tuple[PointFigures | None, ...]
    compared: tuple[int, ...]
    agreement: Agreement
    reference: int | None
    effects: tuple[Effect, ...]

    def between(self, a: int, b: int) -> tuple[float | None, float | None]:
        """Return overlap and share of equal ranks of two compared points, by their places in `points`."""
        return self.agreement.of(self.compared.index(a), self.compared.index(b))

    def known(self, place: int) -> PointFigures:
        """Return the figures of a compared point."""
        figures = self.figures[place]
        assert figures is not None
        return figures


def compare(points: Sequence[Point]) -> Comparison:
    """Return every figure of a sweep; artifacts' tensors are read, one layer at a time."""
    keys = varied(points)
    alone = [None if point.artifact is None else _point_figures(point, point.artifact) for point in points]
    compared = tuple(place for place, figures in enumerate(alone) if figures is not None)
    agreed = agreement([artifact for point in points if (artifact := point.artifact) is not None])
    reference = max(compared, key=lambda place: _how_dear(points[place], alone[place]), default=None)
    found = Comparison(tuple(points), keys, tuple(alone), compared, agreed, reference, ())
    if reference is not None:
        told = list(alone)
        for place in compared:
            overlap, equal_ranks = found.between(place, reference)
            told[place] = replace(found.known(place), overlap=overlap, equal_ranks=equal_ranks)
        found = replace(found, figures=tuple(told))
    effects = [effect for key in keys if (effect := _effect_of_setting(found, key)) is not None]
    return replace(found, effects=tuple(effects))


def most_different(found: Comparison) -> tuple[int, int] | None:
    """Return the places of the two points whose subspaces overlap least; None if no two can be compared."""
    pairs = [
        (overlap, a, b)
        for a, b in itertools.combinations(found.compared, 2)
        if (overlap := found.between(a, b)[0]) is not None
    ]
    return min(pairs)[1:] if pairs else None


def _point_figures(point: Point, artifact: StoredArtifact) -> PointFigures:
    result, layers = point.result, artifact.layers
    assert result is not None, "an artifact is found by what a run printed"
    return PointFigures(
        layers=len(layers),
        layers_converged=sum(layer.converged for layer in layers),
        total_rank=sum(layer.rank for layer in layers),
        largest_rank=max(layer.rank for layer in layers),
        layers_of_rank_0=sum(layer.rank == 0 for layer in layers),
        trainable_parameters=sum(layer.parameters for layer in layers),
        explained_variance=fmean(layer.explained_variance for layer in layers),
        steps=result.steps,
        tokens=result.tokens,
        pass_seconds=result.pass_seconds,
        seconds=result.seconds,
    )


def _how_dear(point: Point, figures: PointFigures | None) -> tuple[float, ...]:
    assert figures is not None and point.result is not None
    converged = point.result.layers_converged == point.result.layers_total
    given: list[Any] = [point.settings.get(key) for key in ("eva.tau", "eva.rho", "eva.r")]
    numbers = [float(value) if is_number(value) else -math.inf for value in given]
    return converged, figures.layers, *numbers, figures.trainable_parameters, -point.number


def _effect_of_setting(found: Comparison, key: str) -> Effect | None:
    """Pair the points at a setting's first value with those at its last that differ in nothing else."""
    points = [found.points[place] for place in found.compared]
    values = values_in_order(points, key)
    if len(values) < 2:
        return None
    at_ends: list[dict[str, int]] = []
    for value in (values[0], values[-1]):
        here = [p for p in found.compared if same(found.points[p].settings.get(key, _ABSENT)) == same(value)]
        at_ends.append({_other_settings(found, place, key): place for place in here})
    pairs = [(place, at_ends[1][others]) for others, place in at_ends[0].items() if others in at_ends[1]]
    if not pairs:
        return None
    between = [found.between(a, b) for a, b in pairs]
    before, after = (_mean_figures([found.known(pair[end]) for pair in pairs]) for end in (0, 1))
    overlap, equal_ranks = (_mean_known(column) for column in zip(*between, strict=True))
    return Effect(key, values[0], values[-1], len(pairs), before, after, overlap, equal_ranks)


_ABSENT = object()


def _other_settings(found: Comparison, place: int, key: str) -> str:
    settings = found.points[place].settings
    return same([same(settings.get(other, _ABSENT)) for other in found.varied if other != key])


def _mean_figures(figures: Sequence[PointFigures]) -> Means:
    return Means(**{field.name: fmean(getattr(one, field.name) for one in figures) for field in fields(Means)})


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
