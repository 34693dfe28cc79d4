"""The heat maps of a sweep: ranks by point and layer, and agreement between points."""

import math

from eva_dist.render.heat_map import Grid, Heat, draw_heat, scale, share_in_cell
from eva_dist.render.markup import element, figure, said, table
from eva_dist.render.rank_maps import PointRanks, draw_rank_maps
from eva_dist.render.words import overlap, share
from eva_dist.report.agreement import Array, none_if_nan
from eva_dist.report.compare_points import Comparison
from eva_dist.report.settings import label

_MOST_NUMBERED = 12


def rank_maps(found: Comparison) -> str:
    """Return a heat map a module kind, points by blocks, and their means as a table."""
    rows = zip(_numbers_of(found), _words_of(found), [_ranks(found, place) for place in found.compared], strict=True)
    return draw_rank_maps([PointRanks(*row) for row in rows])


def agreement_maps(found: Comparison) -> str:
    """Return both matrices, as drawings and as numbers."""
    matrices = [
        ("Overlap of subspaces", found.agreement.overlap_NN, 4),
        ("Share of layers with equal ranks", found.agreement.equal_ranks_NN, 3),
    ]
    drawn = [_matrix(found, name, matrix, digits) for name, matrix, digits in matrices]
    numbers = [_numbers(found, name, matrix) for name, matrix, _ in matrices]
    caption = "Every point against every other, by their numbers; the brighter, the more alike."
    return figure(caption, element("div", *drawn, class_="matrices")) + element(
        "details", element("summary", "Agreement as numbers"), *numbers
    )


def _ranks(found: Comparison, place: int) -> dict[str, int]:
    artifact = found.points[place].artifact
    assert artifact is not None
    return {layer.name: layer.rank for layer in artifact.layers}


def _matrix(found: Comparison, name: str, matrix: Array, digits: int) -> str:
    grid: Grid = [[none_if_nan(value) for value in row] for row in matrix.tolist()]
    known = [value for row in grid for value in row if value is not None]
    low = min([math.floor(20 * value) / 20 for value in known], default=0.0)
    count = len(grid)
    heat = Heat(
        name=f"{name}, of every pair of points",
        grid=grid,
        row_names=_numbers_of(found),
        column_names=_numbers_of(found),
        row_words=_words_of(found),
        column_words=_words_of(found),
        low=min(low, 0.95),
        high=1.0,
        digits=digits,
        row_height=min(294.0 / count, 60.0),
        in_cell=share_in_cell if count <= _MOST_NUMBERED else None,
    )
    key = scale(f"{heat.low:.2f}", "1", "colour")
    return element("div", element("h3", said(name)), draw_heat(heat), key, class_="panel")


def _numbers(found: Comparison, name: str, matrix: Array) -> str:
    written = overlap if "verlap" in name else share
    head = ["point", *map(said, _numbers_of(found))]
    rows = [
        [_point_cell(found, place), *(said(written(none_if_nan(value))) for value in row)]
        for place, row in zip(found.compared, matrix.tolist(), strict=True)
    ]
    return table(name, head, rows)


def _point_cell(found: Comparison, place: int) -> str:
    return said(found.points[place].number)


def _numbers_of(found: Comparison) -> list[str]:
    return [str(found.points[place].number) for place in found.compared]


def _words_of(found: Comparison) -> list[str]:
    return [
        f"point {found.points[place].number}: {label(found.points[place], found.varied)}" for place in found.compared
    ]
