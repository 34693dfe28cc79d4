"""The axes of a chart: round values, and how they are drawn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eva_dist.render.markup import element, join, number

Place = Callable[[float, float], tuple[float, float]]
"""Returns where in the drawing a pair of values lies."""
DASHES = (None, "5 3", "2 3", "8 3 2 3")
"""How lines of several kinds are broken."""


@dataclass(frozen=True)
class Frame:
    """The size of a drawing, and the margins around what lies between its axes."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    label_x: float
    """Where the turned name of the y axis stands."""
    label_up: float
    """How far above the lower edge the name of the x axis stands."""

    def at(self, across: float, up: float) -> tuple[float, float]:
        """Return the place of shares (0..1) of the width and the height between the axes."""
        inner = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * inner[0], self.height - self.bottom - up * inner[1]


def draw_y_axis(frame: Frame, label: str, ticks: Sequence[tuple[float, str]]) -> Markup:
    """Return the axis; `ticks` are heights in the drawing and what is written there."""
    parts = []
    for y, words in ticks:
        line = f"M{number(frame.left)} {number(y)}H{number(frame.width - frame.right)}"
        parts.append(element("path", class_="grid", d=line))
        parts.append(element("text", words, x=frame.left - 6, y=y + 4, text_anchor="end"))
    middle = (frame.top + frame.height - frame.bottom) / 2
    turned = f"rotate(-90 {number(frame.label_x)} {number(middle)})"
    return join([*parts, element("text", label, x=frame.label_x, y=middle, text_anchor="middle", transform=turned)])


def draw_x_axis(frame: Frame, label: str, ticks: Sequence[tuple[float, str]], text_down: float) -> Markup:
    """Return the axis; `ticks` are places across and what is written there, nothing where there is no room for it."""
    base = frame.height - frame.bottom
    line = f"M{number(frame.left)} {number(base)}H{number(frame.width - frame.right)}"
    parts = [element("path", class_="axis", d=line)]
    for x, words in ticks:
        parts.append(element("path", class_="axis", d=f"M{number(x)} {number(base)}v4"))
        if words:
            parts.append(element("text", words, x=x, y=base + text_down, text_anchor="middle"))
    middle = (frame.left + frame.width - frame.right) / 2
    return join([*parts, element("text", label, x=middle, y=frame.height - frame.label_up, text_anchor="middle")])


def path_of(points: Sequence[tuple[float, float]], place: Place) -> str:
    """Return points as the corners of a line."""
    return " ".join(",".join(map(number, place(x, y))) for x, y in points)


def round_ticks(values: Sequence[float], about: int) -> tuple[float, ...]:
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


def round_decades(low: float, high: float) -> list[float]:
    """Return round values of a logarithmic axis, three to seven of them, around the range."""
    bottom, top = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if top - bottom <= 2:
        fine = [digit * 10.0**power for power in range(bottom, top + 1) for digit in (1, 2, 5)]
        below = [tick for tick in fine if tick <= low * 1.001][-1:]
        above = [tick for tick in fine if tick >= high * 0.999][:1]
        return sorted({*below, *above, *(tick for tick in fine if low < tick < high)})
    every = -(-(top - bottom) // 6)
    return [10.0**power for power in range(top, bottom - every, -every)][::-1]
