"""Ranks by point and layer: a heat map a module kind, as small multiples, and their means as a table."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eva_dist.artifact.layer_names import Place, kinds_in_order, places
from eva_dist.render.heat_map import Heat, draw_heat, scale
from eva_dist.render.markup import element, figure, said, table
from eva_dist.render.words import NONE

_OUTSIDE = "outside the blocks"


@dataclass(frozen=True)
class PointRanks:
    """A row of the maps: its short `name`, what is said to who points at it, and rank by layer."""

    name: str
    words: str
    ranks: Mapping[str, int]


def draw_rank_maps(points: Sequence[PointRanks]) -> str:
    """Return a heat map a module kind, points by blocks, and their means as a table."""
    where = places(list(dict.fromkeys(name for point in points for name in point.ranks)))
    largest = max((rank for point in points for rank in point.ranks.values()), default=0)
    panels = [_panel(points, kind, columns, float(max(largest, 1))) for kind, columns in _columns(where).items()]
    caption = (
        "A panel a module kind, a row a point, a column a transformer block; the colour is the rank. Where a block has "
        "several layers of a kind (experts) it is their mean; hatched: no such layer among the point's targets."
    )
    drawn = element("div", *panels, class_="panels")
    return figure(caption, scale("0", str(largest), "rank"), drawn) + _mean_table(points, where)


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


def _panel(points: Sequence[PointRanks], kind: str, columns: dict[str, list[str]], largest: float) -> str:
    outside = kind == _OUTSIDE
    heat = Heat(
        name=f"Ranks of {kind} by point and block",
        grid=[[_mean([point.ranks[name] for name in names if name in point.ranks]) for names in columns.values()]
              for point in points],
        row_names=[point.name for point in points],
        column_names=[str(at) for at in range(len(columns))] if outside else list(columns),
        row_words=[point.words for point in points],
        column_words=[column if outside else f"{kind}, block {column}" for column in columns],
        low=0.0,
        high=largest,
        digits=0,
        row_height=max(min(240.0 / len(points), 22.0), 7.0),
    )  # fmt: skip
    listed = "; ".join(f"{at}: {column}" for at, column in enumerate(columns)) if outside else ""
    heading = element("h3", element("code", said(kind)) if not outside else said(f"{kind} ({listed})"))
    return element("div", heading, draw_heat(heat), class_="panel")


def _mean_table(points: Sequence[PointRanks], where: dict[str, Place]) -> str:
    kinds = kinds_in_order(where)
    rows = []
    for point in points:
        by_kind: dict[str, list[int]] = defaultdict(list)
        for name, rank in point.ranks.items():
            by_kind[where[name].kind].append(rank)
        rows.append([said(point.name), *(_rank_cell(by_kind.get(kind, [])) for kind in kinds)])
    head = ["point", *(element("code", said(kind)) for kind in kinds)]
    inner = table("Mean rank of each module kind, and the smallest and largest in it", head, rows)
    return element("details", element("summary", "Ranks as numbers"), inner)


def _rank_cell(ranks: Sequence[int]) -> str:
    if not ranks:
        return NONE
    return said(f"{math.fsum(ranks) / len(ranks):.1f} ({min(ranks)}–{max(ranks)})")


def _mean(ranks: Sequence[int]) -> float | None:
    return math.fsum(ranks) / len(ranks) if ranks else None
