"""Heat maps as SVG: one path a colour, cells in runs, so that thousands of cells are a few kilobytes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eva_dist.report.colours import CIVIDIS, LEVELS, cividis, ink_on
from eva_dist.report.markup import data, element, number, said, svg

Grid = Sequence[Sequence[float | None]]

_LEFT, _TOP, _BOTTOM, _WIDTH = 26.0, 4.0, 18.0, 320.0
_LABEL_HEIGHT, _LABEL_WIDTH = 12.0, 24.0
_GAP_FROM = 14.0


@dataclass(frozen=True)
class Heat:
    """A heat map: rows by columns of values, None where there is nothing to show.

    `row_names` and `column_names` stand beside rows and columns; `row_words` and `column_words` say more of them
    to a reader who points at a cell. `digits` of a value are said; `low` and `high` have the ends of the colours;
    `with_numbers` writes the values, shares, into their cells.
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
    with_numbers: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies between the ends of the colours, 0..1."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 1.0


def draw_heat(heat: Heat) -> str:
    """Return the drawing."""
    width = (_WIDTH - _LEFT) / max(len(heat.column_names), 1)
    bottom = _TOP + heat.row_height * len(heat.row_names)
    parts = _cells(heat, width)
    parts += _row_labels(heat) + _column_labels(heat, width, bottom)
    if heat.with_numbers:
        parts += _numbers(heat, width)
    return svg(
        _WIDTH,
        bottom + _BOTTOM,
        heat.name,
        *parts,
        class_="heat",
        data_box=data([_LEFT, _TOP, round(width, 4), heat.row_height]),
        data_grid=";".join(",".join(_written(value, heat.digits) for value in row) for row in heat.grid),
        data_rows=data(list(heat.row_words)),
        data_columns=data(list(heat.column_words)),
    )


def scale(low: str, high: str, what: str) -> str:
    """Return the key to the colours."""
    bar = element("span", class_="bar", style=f"background:linear-gradient(to right,{','.join(CIVIDIS)})")
    return element("p", said(f"{what}: {low} "), bar, said(f" {high}"), class_="scale")


def _cells(heat: Heat, width: float) -> list[str]:
    runs: dict[int, list[str]] = defaultdict(list)
    thick = heat.row_height - (1.2 if heat.row_height >= _GAP_FROM else 0)
    empty = []
    for y, row in enumerate(heat.grid):
        levels = [None if value is None else _level(heat, value) for value in row]
        x = 0
        while x < len(levels):
            end = x + 1
            while end < len(levels) and levels[end] == levels[x]:
                end += 1
            left, long = _LEFT + x * width, (end - x) * width
            if (level := levels[x]) is None:
                empty.append(
                    element("rect", class_="void", x=left, y=_TOP + y * heat.row_height, width=long, height=thick)
                )
            else:
                middle = _TOP + (y + 0.5) * heat.row_height
                runs[level].append(f"M{number(left)} {number(middle)}h{number(long)}")
            x = end
    return empty + [
        element("path", stroke=cividis(level / LEVELS), stroke_width=thick, d="".join(path))
        for level, path in sorted(runs.items())
    ]


def _level(heat: Heat, value: float) -> int:
    """Return the colour's number; only the lowest value itself gets 0, for no rank differs from a low rank."""
    level = round(heat.share(value) * LEVELS)
    return max(level, 1) if value > heat.low else 0


def _row_labels(heat: Heat) -> list[str]:
    every = _every(len(heat.row_names), _LABEL_HEIGHT / heat.row_height)
    return [
        element("text", said(name), x=_LEFT - 4, y=_TOP + (at + 0.5) * heat.row_height + 3.5, text_anchor="end")
        for at, name in enumerate(heat.row_names)
        if at % every == 0
    ]


def _column_labels(heat: Heat, width: float, bottom: float) -> list[str]:
    longest = max(map(len, heat.column_names), default=1)
    every = _every(len(heat.column_names), max(_LABEL_WIDTH, 7.0 * longest) / width)
    return [
        element("text", said(name), x=_LEFT + (at + 0.5) * width, y=bottom + 13, text_anchor="middle")
        for at, name in enumerate(heat.column_names)
        if at % every == 0
    ]


def _every(count: int, least: float) -> int:
    """Return which of the labels are written: each, each second, fifth, tenth, ..."""
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 500)
    return next((step for step in steps if step >= least), max(count, 1))


def _numbers(heat: Heat, width: float) -> list[str]:
    size = min(10.0, width / 3.0)
    return [
        element(
            "text",
            _in_cell(value),
            x=_LEFT + (x + 0.5) * width,
            y=_TOP + (y + 0.5) * heat.row_height + 0.36 * size,
            text_anchor="middle",
            style=f"fill:{ink_on(heat.share(value))};font-size:{number(size)}px",
        )
        for y, row in enumerate(heat.grid)
        for x, value in enumerate(row)
        if value is not None
    ]


def _in_cell(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1"


def _written(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if digits else number(value)
