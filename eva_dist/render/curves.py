"""Curves with a band around them as SVG, on a linear or a logarithmic axis."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from markupsafe import Markup

from eva_dist.render.axes import DASHES, Frame, Place, draw_x_axis, draw_y_axis, path_of, round_decades, round_ticks
from eva_dist.render.colours import KINDS
from eva_dist.render.markup import element, svg

_MOST_POINTS = 400


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


def draw_curves(plot: CurvePlot) -> Markup:
    """Return the drawing; what a logarithm has no place for is left out."""
    curves = [_thin_out(curve, plot.logarithmic) for curve in plot.curves]
    xs = [x for curve in curves for x, _ in curve.points] or [0.0, 1.0]
    ys = [y for curve in curves for y in _heights_of(curve, plot.logarithmic)] or [0.1, 1.0]
    low, high = plot.y_ends or (min(ys), max(ys))
    if plot.logarithmic:
        y_ticks = round_decades(low, high)
    else:
        margin = 1e-9 * max(abs(low), abs(high), 1e-300)
        y_ticks = [tick for tick in round_ticks([low, high], 4) if low - margin <= tick <= high + margin]
    low, high = min(low, *y_ticks), max(high, *y_ticks)
    first, last = min(xs), max(xs)
    x_ticks = [tick for tick in round_ticks([first, last], 5) if float(tick).is_integer() and first <= tick <= last]
    frame = Frame(plot.width, plot.height, left=58.0, right=12.0, top=10.0, bottom=42.0, label_x=11, label_up=7)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        above, bottom, top = (map(math.log10, (y, low, high))) if plot.logarithmic else (y, low, high)
        return frame.at(across, (above - bottom) / (top - bottom) if top > bottom else 0.5)

    y_marks = [(place(first, tick)[1], plot.y_text(tick)) for tick in y_ticks]
    x_marks = [(place(tick, high)[0], f"{tick:g}") for tick in x_ticks]
    parts = [draw_y_axis(frame, plot.y_label, y_marks), draw_x_axis(frame, plot.x_label, x_marks, 16)]
    parts += [_draw_band(curve, low, place) for curve in curves if curve.band]
    parts += [_draw_line(curve, place) for curve in curves if curve.points]
    return svg(plot.width, plot.height, plot.name, *parts, class_="chart")


def _thin_out(curve: Curve, logarithmic: bool) -> Curve:
    """Return the curve with as many points as can be seen, its last one among them."""
    every = -(-len(curve.points) // _MOST_POINTS) or 1
    last = len(curve.points) - 1
    kept = [
        at for at, (_, y) in enumerate(curve.points) if (at % every == 0 or at == last) and (not logarithmic or y > 0)
    ]
    band = tuple(curve.band[at] for at in kept) if curve.band else ()
    return replace(curve, points=tuple(curve.points[at] for at in kept), band=band)


def _heights_of(curve: Curve, logarithmic: bool) -> list[float]:
    found = [y for _, y in curve.points] + [y for around in curve.band for y in around]
    return [y for y in found if y > 0] if logarithmic else found


def _draw_band(curve: Curve, lowest: float, place: Place) -> Markup:
    corners = list(zip(curve.points, curve.band, strict=True))
    above = [(x, max(high, y)) for (x, y), (_, high) in corners]
    below = [(x, max(low, lowest)) for (x, _), (low, _) in reversed(corners)]
    return element("polygon", points=path_of([*above, *below], place), class_=f"band c{curve.colour % KINDS}")


def _draw_line(curve: Curve, place: Place) -> Markup:
    of_colour, words = f"c{curve.colour % KINDS}", element("title", curve.words)
    if len(curve.points) == 1:
        x, y = place(*curve.points[0])
        return element("circle", words, cx=x, cy=y, r=4, class_=f"mark {of_colour}")
    dashes = DASHES[curve.dashes % len(DASHES)]
    path = path_of(curve.points, place)
    return element("polyline", words, points=path, class_=f"line {of_colour}", stroke_dasharray=dashes)
