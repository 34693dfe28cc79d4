"""Charts of points and lines as SVG, narrow enough that a phone need not shrink their text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eva_dist.render.colours import KINDS
from eva_dist.render.markup import element, number, said, svg

_WIDTH, _HEIGHT = 420.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 74.0, 16.0, 14.0, 46.0
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


def draw_chart(chart: Chart) -> str:
    """Return the drawing."""
    marks = [mark for series in chart.series for mark in series.marks]
    x_ticks = tuple(map(float, range(len(chart.x_values)))) or ticks([mark.x for mark in marks], 4)
    y_ticks = ticks([mark.y for mark in marks], 5)
    x_ends = _ends([mark.x for mark in marks], x_ticks)
    if chart.x_values:
        x_ends = (-0.35, len(chart.x_values) - 0.65)
    y_ends = _ends([mark.y for mark in marks], y_ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ends[0]) / (x_ends[1] - x_ends[0])
        up = (y - y_ends[0]) / (y_ends[1] - y_ends[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_y_axis(chart, y_ticks, place, x_ends[0]), _x_axis(chart, x_ticks, place, y_ends[0])]
    parts += [_line(series, place) for series in chart.series if len(series.marks) > 1]
    placed = [(series, mark, place(mark.x, mark.y)) for series in chart.series for mark in series.marks]
    parts += [_mark(series, mark, at) for series, mark, at in placed]
    parts += _numbers([(mark.number, at) for _, mark, at in placed])
    return svg(_WIDTH, _HEIGHT, chart.name, *parts, class_="chart")


def swatch(colour: int | None, kind: int) -> str:
    """Return a small mark for a legend; a colour of None is that of the text."""
    return element("svg", _shape(colour, kind, 9, 9), viewBox="0 0 18 18", class_="swatch", aria_hidden="true")


def _shape(colour: int | None, kind: int, x: float, y: float) -> str:
    """Return a mark: a disc, or an outline that lets a disc at its place be seen."""
    kind %= SHAPES
    of_colour = "" if colour is None else f" c{colour % KINDS}"
    if kind == 0:
        return element("circle", cx=x, cy=y, r=4.5, class_=f"mark{of_colour}")
    path = " ".join(f"{number(x + a)},{number(y + b)}" for a, b in _CORNERS[kind])
    return element("polygon", points=path, class_=f"mark hollow{of_colour}")


def _mark(series: Series, mark: Mark, at: tuple[float, float]) -> str:
    drawn = _shape(series.colour, series.shape, *at)
    return element("g", element("title", said(mark.words)), drawn, class_="point")


def _line(series: Series, place: Callable[[float, float], tuple[float, float]]) -> str:
    path = " ".join(",".join(map(number, place(mark.x, mark.y))) for mark in series.marks)
    dashes = (None, "5 3", "2 3", "8 3 2 3")[series.shape % SHAPES]
    return element("polyline", points=path, class_=f"line c{series.colour % KINDS}", stroke_dasharray=dashes)


def _numbers(placed: Sequence[tuple[int, tuple[float, float]]]) -> list[str]:
    """Return the points' numbers beside their marks, one text where marks lie on each other."""
    heaps: list[tuple[tuple[float, float], list[int]]] = []
    for of_point, at in sorted(placed):
        near = next((heap for where, heap in heaps if math.dist(where, at) < _NEAR), None)
        if near is None:
            heaps.append((at, [of_point]))
        else:
            near.append(of_point)
    return [
        element(
            "text",
            ", ".join(map(str, heap[:3])) + (", …" if len(heap) > 3 else ""),
            x=x + 7 if x < _WIDTH - 70 else x - 7,
            y=y - 5,
            class_="number",
            text_anchor="start" if x < _WIDTH - 70 else "end",
        )
        for (x, y), heap in heaps
    ]


def _y_axis(
    chart: Chart, ticks: Sequence[float], place: Callable[[float, float], tuple[float, float]], left: float
) -> str:
    parts = []
    for tick, words in zip(ticks, chart.y_text(ticks), strict=True):
        x, y = place(left, tick)
        parts.append(element("path", class_="grid", d=f"M{number(x)} {number(y)}H{number(_WIDTH - _RIGHT)}"))
        parts.append(element("text", said(words), x=x - 6, y=y + 4, text_anchor="end"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f"rotate(-90 12 {number(middle)})"
    return "".join(
        [*parts, element("text", said(chart.y_label), x=12, y=middle, text_anchor="middle", transform=turned)]
    )


def _x_axis(
    chart: Chart, ticks: Sequence[float], place: Callable[[float, float], tuple[float, float]], bottom: float
) -> str:
    middle, base = (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM
    parts = [element("path", class_="axis", d=f"M{number(_LEFT)} {number(base)}H{number(_WIDTH - _RIGHT)}")]
    every = -(-len(ticks) // 8) or 1
    written = chart.x_values or chart.x_text(ticks)
    for at, (tick, words) in enumerate(zip(ticks, written, strict=True)):
        x, y = place(tick, bottom)
        parts.append(element("path", class_="axis", d=f"M{number(x)} {number(y)}v4"))
        if at % every == 0:
            parts.append(element("text", said(words), x=x, y=y + 17, text_anchor="middle"))
    return "".join([*parts, element("text", said(chart.x_label), x=middle, y=_HEIGHT - 8, text_anchor="middle")])


def ticks(values: Sequence[float], about: int) -> tuple[float, ...]:
    """Return round values across the range of `values`, `about` so many; two at least."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-300):  # rounding alone sets them apart
        width = abs(high) * 0.2 or 1.0
        low, high = max(low - width / 2, 0.0) if low >= 0 else low - width / 2, high + width / 2
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(at * step for at in range(first, last + 1))


def _ends(values: Sequence[float], ticks: Sequence[float]) -> tuple[float, float]:
    low, high = min(*values, *ticks), max(*values, *ticks)
    margin = 0.04 * (high - low)
    return low - margin, high + margin
