"""The heat maps of a sweep: ranks by point and layer, and agreement between points."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from eva_dist.render.heat_map import Heat, draw_heat, share_in_cell
from eva_dist.render.rank_maps import PointRanks, draw_rank_maps
from eva_dist.render.words import overlap, share
from eva_dist.report.agreement import Array, none_if_nan
from eva_dist.report.compare_points import Comparison
from eva_dist.report.settings import label

_MOST_NUMBERED = 12


@dataclass(frozen=True)
class AgreementMatrix:
    """Every compared point against every other: as a drawing, whose colours begin at `lowest`, and as numbers."""

    name: str
    drawing: Markup
    lowest: str
    cells: list[list[str]]


def rank_maps(found: Comparison) -> Markup:
    """Return a heat map a module kind, points by blocks, and their means as a table."""
    ranks = [artifact.ranks for point in found.points if (artifact := point.artifact) is not None]
    rows = zip(numbers_of_points(found), _words_of_points(found), ranks, strict=True)
    return draw_rank_maps([PointRanks(*row) for row in rows])


def agreement_matrices(found: Comparison) -> list[AgreementMatrix]:
    """Return overlap and equal ranks of every pair of points."""
    agreement = found.agreement
    return [
        _agreement_matrix(found, "Overlap of subspaces", agreement.overlap_NN, 4, overlap),
        _agreement_matrix(found, "Share of layers with equal ranks", agreement.equal_ranks_NN, 3, share),
    ]


def numbers_of_points(found: Comparison) -> list[str]:
    """Return the numbers of those points that are compared."""
    return [str(found.points[place].number) for place in found.compared]


def _words_of_points(found: Comparison) -> list[str]:
    points = [found.points[place] for place in found.compared]
    return [f"point {point.number}: {label(point, found.varied)}" for point in points]


def _agreement_matrix(
    found: Comparison, name: str, matrix: Array, digits: int, write: Callable[[float | None], str]
) -> AgreementMatrix:
    grid = [[none_if_nan(value) for value in row] for row in matrix.tolist()]
    known = [value for row in grid for value in row if value is not None]
    # The colours begin at a round value below all of them: points that are nearly alike are told apart.
    lowest = min([0.95, *(math.floor(20 * value) / 20 for value in known)]) if known else 0.0
    heat = Heat(
        name=f"{name}, of every pair of points",
        grid=grid,
        row_names=numbers_of_points(found),
        column_names=numbers_of_points(found),
        row_words=_words_of_points(found),
        column_words=_words_of_points(found),
        low=lowest,
        high=1.0,
        digits=digits,
        row_height=min(294.0 / len(grid), 60.0),
        in_cell=share_in_cell if len(grid) <= _MOST_NUMBERED else None,
    )
    cells = [[write(value) for value in row] for row in grid]
    return AgreementMatrix(name, draw_heat(heat), f"{lowest:.2f}", cells)
