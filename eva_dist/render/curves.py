"""Curves with a band around them as SVG, on a linear or a logarithmic axis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eva_dist.render.charts import ticks
from eva_dist.render.colours import KINDS
from eva_dist.render.markup import element, number, said, svg

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 10.0, 42.0
_MOST_POINTS = 400
_DASHES = (None, "5 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Curve:
    """Points (x, y) that a line joins; `band` has the lowest and the highest y at each of them, if there is one."""

    words: str
    points: tuple[tuple[float, float], ...]
    colour: int
    dashes: int = 0
    band: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class CurvePlot:
    """Curves over one pair of axes; `y_ends` are the ends of the y axis, None to take them from the curves."""

    name: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    y_text: Callable[[float], str]
    logarithmic: bool = False
    y_ends: tuple[float, float] | None = None
    width: float = 420.0
    height: float = 250.0


def draw_curves(plot: CurvePlot) -> str:
    """Return the drawing; what a logarithm has no place for is left out."""
    curves = [_thinned(curve, plot.logarithmic) for curve in plot.curves]
    xs = [x for curve in curves for x, _ in curve.points] or [0.0, 1.0]
    ys = [y for curve in curves for y in _heights(curve, plot.logarithmic)] or [0.1, 1.0]
    low, high = plot.y_ends or (min(ys), max(ys))
    y_ticks = _decades(low, high) if plot.logarithmic else [t for t in ticks([low, high], 4) if _within(t, low, high)]
    low, high = min(low, *y_ticks), max(high, *y_ticks)
    first, last = min(xs), max(xs)
    x_ticks = [tick for tick in ticks([first, last], 5) if float(tick).is_integer() and first <= tick <= last]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        above, bottom, top = (map(math.log10, (y, low, high))) if plot.logarithmic else (y, low, high)
        up = (above - bottom) / (top - bottom) if top > bottom else 0.5
        inner = plot.width - _LEFT - _RIGHT, plot.height - _TOP - _BOTTOM
        return _LEFT + across * inner[0], plot.height - _BOTTOM - up * inner[1]

    parts = [_y_axis(plot, [(tick, place(first, tick)[1]) for tick in y_ticks])]
    parts.append(_x_axis(plot, [(tick, place(tick, high)[0]) for tick in x_ticks]))
    parts += [_band(curve, low, place) for curve in curves if curve.band]
    parts += [_line(curve, place) for curve in curves if curve.points]
    return svg(plot.width, plot.height, plot.name, *parts, class_="chart")


def _thinned(curve: Curve, logarithmic: bool) -> Curve:
    """Return the curve with as many points as can be seen, its last one among them."""
    every = -(-len(curve.points) // _MOST_POINTS) or 1
    last = len(curve.points) - 1
    band = curve.band or ((0.0, 0.0),) * len(curve.points)
    kept = [
        (point, around)
        for at, (point, around) in enumerate(zip(curve.points, band, strict=True))
        if (at % every == 0 or at == last) and (not logarithmic or point[1] > 0)
    ]
    points = tuple(point for point, _ in kept)
    return Curve(curve.words, points, curve.colour, curve.dashes, tuple(b for _, b in kept) if curve.band else ())


def _heights(curve: Curve, logarithmic: bool) -> list[float]:
    found = [y for _, y in curve.points] + [y for around in curve.band for y in around]
    return [y for y in found if y > 0] if logarithmic else found


def _decades(low: float, high: float) -> list[float]:
    """Return round values of a logarithmic axis, three to seven of them, around the range."""
    bottom, top = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if top - bottom <= 2:
        fine = [digit * 10.0**power for power in range(bottom, top + 1) for digit in (1, 2, 5)]
        below = [tick for tick in fine if tick <= low * 1.001][-1:]
        above = [tick for tick in fine if tick >= high * 0.999][:1]
        return sorted({*below, *above, *(tick for tick in fine if low < tick < high)})
    every = -(-(top - bottom) // 6)
    return [10.0**power for power in range(top, bottom - every, -every)][::-1]


def _within(tick: float, low: float, high: float) -> bool:
    margin = 1e-9 * max(abs(low), abs(high), 1e-300)
    return low - margin <= tick <= high + margin


def _y_axis(plot: CurvePlot, placed: Sequence[tuple[float, float]]) -> str:
    parts = []
    for tick, y in placed:
        parts.append(element("path", class_="grid", d=f"M{number(_LEFT)} {number(y)}H{number(plot.width - _RIGHT)}"))
        parts.append(element("text", said(plot.y_text(tick)), x=_LEFT - 6, y=y + 4, text_anchor="end"))
    middle = (_TOP + plot.height - _BOTTOM) / 2
    turned = f"rotate(-90 11 {number(middle)})"
    return "".join(
        [*parts, element("text", said(plot.y_label), x=11, y=middle, text_anchor="middle", transform=turned)]
    )


def _x_axis(plot: CurvePlot, placed: Sequence[tuple[float, float]]) -> str:
    base, middle = plot.height - _BOTTOM, (_LEFT + plot.width - _RIGHT) / 2
    parts = [element("path", class_="axis", d=f"M{number(_LEFT)} {number(base)}H{number(plot.width - _RIGHT)}")]
    for tick, x in placed:
        parts.append(element("path", class_="axis", d=f"M{number(x)} {number(base)}v4"))
        parts.append(element("text", f"{tick:g}", x=x, y=base + 16, text_anchor="middle"))
    label = element("text", said(plot.x_label), x=middle, y=plot.height - 7, text_anchor="middle")
    return "".join([*parts, label])


def _band(curve: Curve, lowest: float, place: Callable[[float, float], tuple[float, float]]) -> str:
    corners = list(zip(curve.points, curve.band, strict=True))
    above = [place(x, max(high, y)) for (x, y), (_, high) in corners]
    below = [place(x, max(low, lowest)) for (x, y), (low, _) in reversed(corners)]
    path = " ".join(",".join(map(number, at)) for at in (*above, *below))
    return element("polygon", points=path, class_=f"band c{curve.colour % KINDS}")


def _line(curve: Curve, place: Callable[[float, float], tuple[float, float]]) -> str:
    of_colour, words = f"c{curve.colour % KINDS}", element("title", said(curve.words))
    if len(curve.points) == 1:
        x, y = place(*curve.points[0])
        return element("circle", words, cx=x, cy=y, r=4, class_=f"mark {of_colour}")
    path = " ".join(",".join(map(number, place(*point))) for point in curve.points)
    dashes = _DASHES[curve.dashes % len(_DASHES)]
    return element("polyline", words, points=path, class_=f"line {of_colour}", stroke_dasharray=dashes)
