"""What varies across the points of a sweep, what they share, and how a point is called."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eva_dist.artifact.reading import Reading
from eva_dist.report.point import Point

_NAMES = ("artifact.", "store.")
"""Settings that say where a point goes, not what it is."""

_MOST_CHARACTERS = 28


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key to value; a list is a value, an empty mapping is nothing."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def flatten_parts(manifest: Reading, parts: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield key and value of what parts of a manifest say: `parts` has each one's path, and a prefix of its keys."""
    for path, prefix in parts.items():
        part = manifest.found(path)
        yield from flatten(part, prefix).items() if isinstance(part, dict) else ()


def same(value: Any) -> str:
    """Return a text that is equal for equal values; 1 and 1.0 are, 1 and true are not."""
    number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return json.dumps(float(value) if number else value, sort_keys=True, default=str)


def varied(points: Sequence[Point]) -> tuple[str, ...]:
    """Return the keys whose values differ across points: as they were typed first, then as the config has them.

    A key that a point does not have is one more value, unless little is known of that point.
    """
    typed = [override.lstrip("+~").partition("=")[0] for point in points for override in point.overrides]
    keys = dict.fromkeys([*typed, *(key for point in points for key in point.settings)])
    return tuple(key for key in keys if not key.startswith(_NAMES) and _count_values(points, key) > 1)


def _count_values(points: Sequence[Point], key: str) -> int:
    """Return how many values a key has; 0 if it is no setting but, say, the choice of a group of them."""
    found = {same(point.settings[key]) for point in points if key in point.settings}
    complete = [point for point in points if point.complete] or [point for point in points if point.settings]
    return len(found) + (bool(found) and any(key not in point.settings for point in complete))


def shared(points: Sequence[Point]) -> dict[str, Any]:
    """Return the settings that all points have with the same value, as far as they are known."""
    complete = [point for point in points if point.complete] or points
    return {
        key: value
        for key, value in complete[0].settings.items()
        if all(key in point.settings for point in complete) and _count_values(points, key) == 1
    }


def values_in_order(points: Sequence[Point], key: str) -> list[Any]:
    """Return the values of a setting, each once: numbers by size, others as they come."""
    by_text = {same(point.settings[key]): point.settings[key] for point in points if key in point.settings}
    found = list(by_text.values())
    return sorted(found) if all(map(is_number, found)) else found


def is_number(value: Any) -> bool:
    """Tell whether it has a place on an axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_SHORT = {"solver.name": "solver", "sweep.mode": "sweep.mode"}


def short(keys: Sequence[str]) -> dict[str, str]:
    """Return key to a short name where that tells it from the others, else the key.

    A setting of EVA goes by what follows `eva.`, the solver by its group's name, others by the last part of the key.
    """
    last = [_SHORT.get(key) or (key[4:] if key.startswith("eva.") else key.rpartition(".")[2]) for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def text(value: Any, most: int | None = _MOST_CHARACTERS) -> str:
    """Return a value as a setting is written, cut after `most` characters."""
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    written = " ".join(written.split())
    return written if most is None or len(written) <= most else written[: most - 1] + "…"


def whole_text(value: Any) -> str:
    """Return a value as a setting is written, all of it."""
    return value if isinstance(value, str) else text(value, most=None)


def label(point: Point, keys: Sequence[str]) -> str:
    """Return e.g. `rho=1.5 tau=0.95`; `point 3` where nothing varies or is known."""
    names = short(keys)
    said = [f"{names[key]}={text(point.settings[key])}" for key in keys if key in point.settings]
    return " ".join(said) or f"point {point.number}"
