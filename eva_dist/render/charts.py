"""Charts of points and lines as SVG, narrow enough that a phone need not shrink their text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eva_dist.render.axes import DASHES, Frame, Place, draw_x_axis, draw_y_axis, path_of, round_ticks
from eva_dist.render.colours import KINDS
from eva_dist.render.markup import element, number, svg

_FRAME = Frame(420.0, 290.0, left=74.0, right=16.0, top=14.0, bottom=46.0, label_x=12, label_up=8)
_MOST_X_WORDS = 8
_NEAR = 13.0
SHAPES = 4
"""How many shapes of marks there are: disc, square, triangle, diamond."""
_CORNERS: dict[int, list[tuple[float, float]]] = {
    1: [(-5.5, -5.5), (5.5, -5.5), (5.5, 5.5), (-5.5, 5.5)],
    2: [(0, -7), (6.5, 4.5), (-6.5, 4.5)],
    3: [(0, -7.5), (7.5, 0), (0, 7.5), (-7.5, 0)],
}


Ticks = Callable[[Sequence[float]], list[str]]
"""Writes the values of an axis, so that they can be told apart."""


@dataclass(frozen=True)
class Mark:
    """A point in a chart: `number` stands beside it, `words` are said to who points at it."""

    x: float
    y: float
    number: int
    words: str


@dataclass(frozen=True)
class Series:
    """Marks that a line joins, in their order; `colour` and `shape` are places in the palette and among the shapes."""

    marks: tuple[Mark, ...]
    colour: int
    shape: int


@dataclass(frozen=True)
class Chart:
    """A chart. `x_values` names places on the x axis, where they are settings; without it the axis is an amount."""

    name: str
    x_label: str
    y_label: str
    x_text: Ticks
    y_text: Ticks
    series: tuple[Series, ...]
    x_values: tuple[str, ...] = ()


def draw_chart(chart: Chart) -> Markup:
    """Return the drawing."""
    marks = [mark for series in chart.series for mark in series.marks]
    x_ticks = tuple(map(float, range(len(chart.x_values)))) or round_ticks([mark.x for mark in marks], 4)
    y_ticks = round_ticks([mark.y for mark in marks], 5)
    x_ends = _axis_ends([mark.x for mark in marks], x_ticks)
    if chart.x_values:
        x_ends = (-0.35, len(chart.x_values) - 0.65)
    y_ends = _axis_ends([mark.y for mark in marks], y_ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        return _FRAME.at((x - x_ends[0]) / (x_ends[1] - x_ends[0]), (y - y_ends[0]) / (y_ends[1] - y_ends[0]))

    every = -(-len(x_ticks) // _MOST_X_WORDS) or 1
    x_words = [words if at % every == 0 else "" for at, words in enumerate(chart.x_values or chart.x_text(x_ticks))]
    y_words = chart.y_text(y_ticks)
    y_marks = [(place(x_ends[0], tick)[1], words) for tick, words in zip(y_ticks, y_words, strict=True)]
    x_marks = [(place(tick, y_ends[0])[0], words) for tick, words in zip(x_ticks, x_words, strict=True)]
    parts = [draw_y_axis(_FRAME, chart.y_label, y_marks), draw_x_axis(_FRAME, chart.x_label, x_marks, 17)]
    parts += [_draw_line(series, place) for series in chart.series if len(series.marks) > 1]
    placed = [(series, mark, place(mark.x, mark.y)) for series in chart.series for mark in series.marks]
    for series, mark, at in placed:
        shape = _draw_shape(series.colour, series.shape, *at)
        parts.append(element("g", element("title", mark.words), shape, class_="point"))
    parts += _draw_numbers([(mark.number, at) for _, mark, at in placed])
    return svg(_FRAME.width, _FRAME.height, chart.name, *parts, class_="chart")


def swatch(colour: int | None, kind: int) -> Markup:
    """Return a small mark for a legend; a colour of None is that of the text."""
    return element("svg", _draw_shape(colour, kind, 9, 9), viewBox="0 0 18 18", class_="swatch", aria_hidden="true")


def _draw_shape(colour: int | None, kind: int, x: float, y: float) -> Markup:
    """Return a mark: a disc, or an outline that lets a disc at its place be seen."""
    kind %= SHAPES
    of_colour = "" if colour is None else f" c{colour % KINDS}"
    if kind == 0:
        return element("circle", cx=x, cy=y, r=4.5, class_=f"mark{of_colour}")
    path = " ".join(f"{number(x + a)},{number(y + b)}" for a, b in _CORNERS[kind])
    return element("polygon", points=path, class_=f"mark hollow{of_colour}")


def _draw_line(series: Series, place: Place) -> Markup:
    path = path_of([(mark.x, mark.y) for mark in series.marks], place)
    dashes = DASHES[series.shape % SHAPES]
    return element("polyline", points=path, class_=f"line c{series.colour % KINDS}", stroke_dasharray=dashes)


def _draw_numbers(placed: Sequence[tuple[int, tuple[float, float]]]) -> list[Markup]:
    """Return the points' numbers beside their marks, one text where marks lie on each other."""
    heaps: list[tuple[tuple[float, float], list[int]]] = []
    for of_point, at in sorted(placed):
        near = next((heap for where, heap in heaps if math.dist(where, at) < _NEAR), None)
        if near is None:
            heaps.append((at, [of_point]))
        else:
            near.append(of_point)
    drawn = []
    for (x, y), heap in heaps:
        is_left = x < _FRAME.width - 70  # on the right of its mark a number would leave the drawing
        drawn.append(
            element(
                "text",
                ", ".join(map(str, heap[:3])) + (", …" if len(heap) > 3 else ""),
                x=x + 7 if is_left else x - 7,
                y=y - 5,
                class_="number",
                text_anchor="start" if is_left else "end",
            )
        )
    return drawn


def _axis_ends(values: Sequence[float], ticks: Sequence[float]) -> tuple[float, float]:
    low, high = min(*values, *ticks), max(*values, *ticks)
    margin = 0.04 * (high - low)
    return low - margin, high + margin
