"""Ranks as heat maps: of one artifact by module kind and block, and of several points as small multiples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eva_dist.artifact.layer_names import BlockGrid, Place, block_grid, places
from eva_dist.artifact.reading import shown
from eva_dist.render.colours import AMOUNT, DIFFERENCE, Palette
from eva_dist.render.heat_map import Heat, draw_heat
from eva_dist.render.markup import element
from eva_dist.render.templates import render_shared
from eva_dist.render.words import NONE

_OUTSIDE = "outside the blocks"
_MOST_KINDS = 60
_MOST_NUMBERED_CELLS = 700
_NARROWEST_NUMBERED = 13.0
_ROW_HEIGHT = 22.0


@dataclass(frozen=True)
class PointRanks:
    """A row of the maps: its short `name`, what is said to who points at it, and rank by layer."""

    name: str
    words: str
    ranks: Mapping[str, int]


def draw_rank_map(
    name: str,
    ranks: Mapping[str, float],
    ends: tuple[float, float],
    where: Mapping[str, Place],
    palette: Palette = AMOUNT,
    width: float = 720.0,
) -> Markup:
    """Return the map of a value by layer, a row a module kind and a column a block; empty if no layer is in a block.

    `ends` are the ends of the map's colours; differences are written with their sign.
    """
    grid = block_grid(where)
    kinds, blocks = grid.kinds[:_MOST_KINDS], grid.blocks
    if not kinds:
        return Markup("")
    words = [shown(kind, 40) for kind in kinds]
    left = min(14 + 6.1 * max(map(len, words)), 0.45 * width)
    is_numbered = (width - left) / len(blocks) >= _NARROWEST_NUMBERED
    is_numbered = is_numbered and len(kinds) * len(blocks) <= _MOST_NUMBERED_CELLS
    write = _write_signed if palette is DIFFERENCE else "{:.0f}".format
    heat = Heat(
        name=name,
        grid=[[grid.mean_of(ranks, kind, block) for block in blocks] for kind in kinds],
        row_names=words,
        column_names=[str(block) for block in blocks],
        row_words=words,
        column_words=[f"block {block}" for block in blocks],
        low=ends[0],
        high=ends[1],
        digits=0,
        row_height=_ROW_HEIGHT,
        in_cell=write if is_numbered else None,
        palette=palette,
        width=min(width, left + 64 * len(blocks)),
        left=left,
    )
    drawing, label = draw_heat(heat), f"{name}, drawing"
    return element("div", drawing, class_="sideways", tabindex="0", role="region", aria_label=label)


def draw_rank_maps(points: Sequence[PointRanks]) -> Markup:
    """Return a heat map a module kind, points by blocks, and their means as a table."""
    where = places(list(dict.fromkeys(name for point in points for name in point.ranks)))
    largest = max((rank for point in points for rank in point.ranks.values()), default=0)
    grid = block_grid(where, outside=True)
    panels = [
        (_panel_heading(kind, columns), draw_heat(_panel_heat(points, kind, columns, grid, float(max(largest, 1)))))
        for kind, columns in _columns_by_kind(grid).items()
    ]
    heads = [element("code", kind) for kind in grid.kinds]
    rows = [(point.name, [_mean_in_words(point, kind, where) for kind in grid.kinds]) for point in points]
    return render_shared("rank_maps.html", panels=panels, largest=largest, kinds=heads, rows=rows)


def _columns_by_kind(grid: BlockGrid) -> dict[str, list[tuple[str, int | None]]]:
    """Return kind to the cells of its panel; all kinds have the same blocks, layers outside them one panel."""
    blocks = [block for block in grid.blocks if block is not None]
    panels: dict[str, list[tuple[str, int | None]]] = {}
    for kind in grid.kinds:
        if (kind, None) in grid.names:
            panels.setdefault(_OUTSIDE, []).append((kind, None))
        if any((kind, block) in grid.names for block in blocks):
            panels[kind] = [(kind, block) for block in blocks]
    return panels


def _panel_heading(kind: str, columns: Sequence[tuple[str, int | None]]) -> str:
    if kind != _OUTSIDE:
        return element("code", kind)
    return f"{kind} ({'; '.join(f'{at}: {column}' for at, (column, _) in enumerate(columns))})"


def _panel_heat(
    points: Sequence[PointRanks], kind: str, columns: Sequence[tuple[str, int | None]], grid: BlockGrid, largest: float
) -> Heat:
    return Heat(
        name=f"Ranks of {kind} by point and block",
        grid=[[grid.mean_of(point.ranks, *cell) for cell in columns] for point in points],
        row_names=[point.name for point in points],
        column_names=[str(at if block is None else block) for at, (_, block) in enumerate(columns)],
        row_words=[point.words for point in points],
        column_words=[name if block is None else f"{name}, block {block}" for name, block in columns],
        low=0.0,
        high=largest,
        digits=0,
        row_height=max(min(240.0 / len(points), 22.0), 7.0),
    )


def _mean_in_words(point: PointRanks, kind: str, where: Mapping[str, Place]) -> str:
    """Return the mean rank of a module kind, and the least and the largest of its layers."""
    ranks = [rank for name, rank in point.ranks.items() if where[name].kind == kind]
    return f"{math.fsum(ranks) / len(ranks):.1f} ({min(ranks)}–{max(ranks)})" if ranks else NONE


def _write_signed(value: float) -> str:
    rounded = round(value)
    return "" if rounded == 0 else f"+{rounded}" if rounded > 0 else f"−{-rounded}"
