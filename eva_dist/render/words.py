"""Numbers as text, the same on the page and on a terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NONE = "–"


def share(value: float | None, digits: int = 1) -> str:
    """Return a share in 0..1 as per cent."""
    return NONE if value is None else f"{100 * value:.{digits}f}%"


def overlap(value: float | None) -> str:
    """Return an overlap in 0..1."""
    return NONE if value is None else f"{value:.4f}"


def amount(value: float, digits: int = 3) -> str:
    """Return a count in thousands, millions, ..., with so many digits at least."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:,.{max(digits, len(str(int(value / size))))}g}{unit}"
    return f"{value:.{digits}g}"


def whole(count: int | None) -> str:
    """Return a whole number with its thousands set apart, or a dash."""
    return NONE if count is None else f"{count:,}"


def digits_for(values: Sequence[float], write: Callable[[float, int], str], digits: Sequence[int]) -> int:
    """Return the least of `digits` with which `write` rounds no value, else the last."""

    def number(value: float, count: int) -> float:
        return float(write(value, count).rstrip("%kMG").replace(",", ""))

    return next(
        (few for few in digits if all(number(value, few) == number(value, digits[-1]) for value in values)), digits[-1]
    )


def seconds(value: float) -> str:
    """Return a time with three digits; it is never torn from its unit."""
    return f"{value:.3g}\u00a0s" if value < 999.5 else f"{value:,.0f}\u00a0s"


def steps(value: float) -> str:
    """Return a mean number of steps."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def times(ratio: float) -> str:
    """Return how many times as much."""
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def counted(count: int, noun: str) -> str:
    """Return e.g. `1 point`, `2 points`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(items: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def printable(message: str) -> str:
    """Return a line without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\u00a0" else "?" for c in message)


def without_odd_floats(value: Any, write: Callable[[float], str | None]) -> Any:
    """Return what JSON can hold: in place of NaN and infinity what `write` makes of them."""
    if isinstance(value, Mapping):
        return {str(key): without_odd_floats(item, write) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_odd_floats(item, write) for item in value]
    return write(value) if isinstance(value, float) and not math.isfinite(value) else value
