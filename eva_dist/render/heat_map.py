"""Heat maps as SVG: one path a colour, cells in runs, so that thousands of cells are a few kilobytes."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from eva_dist.render.colours import AMOUNT, LEVELS, Palette
from eva_dist.render.markup import data, element, number, svg

Grid = Sequence[Sequence[float | None]]

_TOP, _BOTTOM = 4.0, 18.0
_LABEL_HEIGHT, _LABEL_WIDTH = 12.0, 24.0
_GAP_FROM = 14.0


def share_in_cell(value: float) -> str:
    """Return a share as it is written into a narrow cell."""
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1"


@dataclass(frozen=True)
class Heat:
    """A heat map: rows by columns of values, None where there is nothing to show.

    `row_names` and `column_names` stand beside rows and columns; `row_words` and `column_words` say more of them
    to a reader who points at a cell. `digits` of a value are said; `low` and `high` have the ends of the colours;
    `in_cell` writes the values into their cells; None leaves them empty. `width` is the drawing's, `left` that of the
    rows' names.
    """

    name: str
    grid: Grid
    row_names: Sequence[str]
    column_names: Sequence[str]
    row_words: Sequence[str]
    column_words: Sequence[str]
    low: float
    high: float
    digits: int
    row_height: float
    in_cell: Callable[[float], str] | None = None
    palette: Palette = AMOUNT
    width: float = 320.0
    left: float = 26.0

    def share(self, value: float) -> float:
        """Return where a value lies between the ends of the colours, 0..1."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 1.0


def draw_heat(heat: Heat) -> Markup:
    """Return the drawing."""
    width = (heat.width - heat.left) / max(len(heat.column_names), 1)
    bottom = _TOP + heat.row_height * len(heat.row_names)
    parts = _draw_cells(heat, width)
    parts += _draw_row_labels(heat) + _draw_column_labels(heat, width, bottom)
    if heat.in_cell is not None:
        parts.append(_draw_numbers(heat, heat.in_cell, width))
    return svg(
        heat.width,
        bottom + _BOTTOM,
        heat.name,
        *parts,
        class_="heat",
        data_box=data([heat.left, _TOP, round(width, 4), heat.row_height]),
        data_grid=";".join(",".join(_write_value(value, heat.digits) for value in row) for row in heat.grid),
        data_rows=data(list(heat.row_words)),
        data_columns=data(list(heat.column_words)),
    )


def _draw_cells(heat: Heat, width: float) -> list[Markup]:
    runs: dict[int, list[str]] = defaultdict(list)
    thick = heat.row_height - (1.2 if heat.row_height >= _GAP_FROM else 0)
    empty = []
    for y, row in enumerate(heat.grid):
        x = 0
        for level, cells in groupby(None if value is None else _colour_level(heat, value) for value in row):
            count = len(list(cells))
            left, long = heat.left + x * width, count * width
            if level is None:
                empty.append(
                    element("rect", class_="void", x=left, y=_TOP + y * heat.row_height, width=long, height=thick)
                )
            else:
                middle = _TOP + (y + 0.5) * heat.row_height
                runs[level].append(f"M{number(left)} {number(middle)}h{number(long)}")
            x += count
    return empty + [
        element("path", stroke=heat.palette.colour(level / LEVELS), stroke_width=thick, d="".join(path))
        for level, path in sorted(runs.items())
    ]


def _colour_level(heat: Heat, value: float) -> int:
    """Return the colour's number; only the lowest value itself gets 0, for no rank differs from a low rank."""
    level = round(heat.share(value) * LEVELS)
    return max(level, 1) if value > heat.low else 0


def _draw_row_labels(heat: Heat) -> list[Markup]:
    every = _label_step(len(heat.row_names), _LABEL_HEIGHT / heat.row_height)
    return [
        element("text", name, x=heat.left - 4, y=_TOP + (at + 0.5) * heat.row_height + 3.5, text_anchor="end")
        for at, name in enumerate(heat.row_names)
        if at % every == 0
    ]


def _draw_column_labels(heat: Heat, width: float, bottom: float) -> list[Markup]:
    longest = max(map(len, heat.column_names), default=1)
    every = _label_step(len(heat.column_names), max(_LABEL_WIDTH, 7.0 * longest) / width)
    return [
        element("text", name, x=heat.left + (at + 0.5) * width, y=bottom + 13, text_anchor="middle")
        for at, name in enumerate(heat.column_names)
        if at % every == 0
    ]


def _label_step(count: int, least: float) -> int:
    """Return which of the labels are written: each, each second, fifth, tenth, ..."""
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 500)
    return next((step for step in steps if step >= least), max(count, 1))


def _draw_numbers(heat: Heat, write: Callable[[float], str], width: float) -> Markup:
    size = min(10.0, width / 3.0 if write is share_in_cell else width / 2.2)
    texts = [
        element(
            "text",
            write(value),
            x=heat.left + (x + 0.5) * width,
            y=_TOP + (y + 0.5) * heat.row_height + 0.36 * size,
            class_="dark" if heat.palette.wants_dark_ink(_colour_level(heat, value) / LEVELS) else None,
        )
        for y, row in enumerate(heat.grid)
        for x, value in enumerate(row)
        if value is not None
    ]
    return element("g", *texts, class_="cells", font_size=size, text_anchor="middle")


def _write_value(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if digits else number(value)
