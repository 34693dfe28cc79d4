"""The heat maps of a sweep: ranks by point and layer, and agreement between points."""

import math
from collections import defaultdict
from collections.abc import Sequence

from eva_dist.artifact.places import Place, kinds_in_order, places
from eva_dist.report.agreement import Array, none_if_nan
from eva_dist.report.figures import Comparison
from eva_dist.report.heat import Grid, Heat, draw_heat, scale
from eva_dist.report.markup import element, figure, said, table
from eva_dist.report.settings import label
from eva_dist.report.words import NONE, overlap, share

_MOST_NUMBERED = 12
_OUTSIDE = "outside the blocks"


def rank_maps(found: Comparison) -> str:
    """Return a heat map a module kind, points by blocks, and their means as a table."""
    ranks = [_ranks(found, place) for place in found.compared]
    where = places(list(dict.fromkeys(name for of_one in ranks for name in of_one)))
    largest = max(figures.largest_rank for figures in map(found.known, found.compared))
    panels = []
    for kind, columns in _columns(where).items():
        panels.append(_panel(found, ranks, kind, columns, float(max(largest, 1))))
    caption = (
        "A panel a module kind, a row a point, a column a transformer block; the colour is the rank. Where a block has "
        "several layers of a kind (experts) it is their mean; hatched: no such layer among the point's targets."
    )
    drawn = element("div", *panels, class_="panels")
    return figure(caption, scale("0", str(largest), "rank"), drawn) + _mean_table(found, ranks, where)


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


def _columns(where: dict[str, Place]) -> dict[str, dict[str, list[str]]]:
    """Return kind to column to the layers there; all kinds have the same blocks, layers outside them one panel."""
    blocks = sorted({place.block for place in where.values() if place.block is not None})
    panels: dict[str, dict[str, list[str]]] = {}
    for kind in kinds_in_order(where):
        for name, place in where.items():
            if place.kind == kind and place.block is not None:
                empty: dict[str, list[str]] = {str(block): [] for block in blocks}
                panels.setdefault(kind, empty)[str(place.block)].append(name)
            elif place.kind == kind:
                panels.setdefault(_OUTSIDE, {}).setdefault(kind, []).append(name)
    return panels


def _panel(
    found: Comparison, ranks: Sequence[dict[str, int]], kind: str, columns: dict[str, list[str]], largest: float
) -> str:
    outside = kind == _OUTSIDE
    heat = Heat(
        name=f"Ranks of {kind} by point and block",
        grid=[[_mean([of_one[name] for name in names if name in of_one]) for names in columns.values()]
              for of_one in ranks],
        row_names=_numbers_of(found),
        column_names=[str(at) for at in range(len(columns))] if outside else list(columns),
        row_words=_words_of(found),
        column_words=[column if outside else f"{kind}, block {column}" for column in columns],
        low=0.0,
        high=largest,
        digits=0,
        row_height=_row_height(len(found.compared)),
    )  # fmt: skip
    listed = "; ".join(f"{at}: {column}" for at, column in enumerate(columns)) if outside else ""
    heading = element("h3", element("code", said(kind)) if not outside else said(f"{kind} ({listed})"))
    return element("div", heading, draw_heat(heat), class_="panel")


def _mean_table(found: Comparison, ranks: Sequence[dict[str, int]], where: dict[str, Place]) -> str:
    kinds = kinds_in_order(where)
    rows = []
    for place, of_one in zip(found.compared, ranks, strict=True):
        by_kind: dict[str, list[int]] = defaultdict(list)
        for name, rank in of_one.items():
            by_kind[where[name].kind].append(rank)
        cells = [_rank_cell(by_kind.get(kind, [])) for kind in kinds]
        rows.append([_point_cell(found, place), *cells])
    head = ["point", *(element("code", said(kind)) for kind in kinds)]
    inner = table("Mean rank of each module kind, and the smallest and largest in it", head, rows)
    return element("details", element("summary", "Ranks as numbers"), inner)


def _rank_cell(ranks: Sequence[int]) -> str:
    if not ranks:
        return NONE
    return said(f"{math.fsum(ranks) / len(ranks):.1f} ({min(ranks)}–{max(ranks)})")


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
        with_numbers=count <= _MOST_NUMBERED,
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


def _row_height(count: int) -> float:
    return max(min(240.0 / count, 22.0), 7.0)


def _mean(ranks: Sequence[int]) -> float | None:
    return math.fsum(ranks) / len(ranks) if ranks else None
