"""Small drawings of text: bars and heat maps of block characters, readable without colour. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDEST_CELL = 2


@dataclass(frozen=True)
class Ink:
    """Characters to draw with: of nine heights, and for zero."""

    bars: str
    zero: str

    def bar(self, share: float) -> str:
        """Return the character of a height; above 0 it is seen."""
        return self.bars[min(max(math.ceil(share * 8 - 1e-9), 1), 8)]


INK = Ink(" ▁▂▃▄▅▆▇█", "·")
ASCII_INK = Ink(" .:-=+*#@", "0")


def ink_for(encoding: str) -> Ink:
    """Return the characters that a terminal of this encoding can show."""
    return INK if encoding.lower().startswith("utf") else ASCII_INK


def heat_lines(
    grid: Sequence[Sequence[float | None]], names: Sequence[str], width: int, highest: float, ink: Ink = INK
) -> list[str]:
    """Return a line a row, then one with the columns' numbers; columns are put together where they do not fit.

    A cell shows its value's share of `highest`, `ink.zero` for zero, nothing for None.
    """
    label = max(map(len, names), default=0) + 1
    columns = max(map(len, grid), default=0)
    room = max(width - label, 1)
    together = max(math.ceil(columns / room), 1)
    thick = min(_WIDEST_CELL, room // max(columns, 1)) or 1
    lines = []
    for name, row in zip(names, grid, strict=True):
        merged = [_mean_of_known(row[at : at + together]) for at in range(0, columns, together)]
        cells = "".join(_draw_cell(value, highest, ink) * thick for value in merged)
        lines.append(f"{name:<{label}}{cells}".rstrip())
    return [*lines, _number_columns(columns, together, thick, label)]


def spectrum_bars(values: Sequence[float], low: float, high: float, width: int, ink: Ink = INK) -> str:
    """Return values as bars on a logarithmic scale from `low` to `high`, both above 0; at most `width` of them."""
    together = max(math.ceil(len(values) / width), 1)
    span = math.log(high / low) if high > low > 0 else 1.0
    drawn = ""
    for at in range(0, len(values), together):
        value = _mean_of_known(values[at : at + together]) or 0.0
        drawn += ink.zero if value <= 0 else ink.bar((1 + 7 * math.log(max(value, low) / low) / span) / 8)
    return drawn


def _draw_cell(value: float | None, highest: float, ink: Ink) -> str:
    if value is None:
        return " "
    return ink.bar(value / highest) if value > 0 and highest > 0 else ink.zero


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number_columns(columns: int, together: int, thick: int, label: int) -> str:
    """Return the numbers of some columns, each where its column begins."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * thick / together >= len(str(columns)) + 1)
    line = ""
    for number in range(0, columns, every):
        line = line.ljust(label + number // together * thick) + str(number)
    return line
