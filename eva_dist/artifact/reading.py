"""Read a manifest that may be anything: what is there and of the right kind, and a list of what is not."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_MOST_CHARACTERS = 400
_LARGEST = 2**63


class Reading:
    """Access to a manifest by path; `problems` grows with each value that is missing or of another kind."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        """Read this manifest."""
        self.manifest = manifest
        self.problems: list[str] = []

    def found(self, *paths: str) -> Any:
        """Return the first value that is not None at dotted paths; None without one, silently."""
        for path in paths:
            if (value := at(self.manifest, *path.split("."))) is not None:
                return value
        return None

    def text(self, *paths: str, needed: bool = False) -> str | None:
        """Return a text, cut where it is longer than any name."""
        return self._read_checked(
            lambda v: shown(v) if isinstance(v, str) and v.strip() else None, "a text", paths, needed
        )

    def number(self, *paths: str, needed: bool = False) -> float | None:
        """Return a finite number."""
        return self._read_checked(as_number, "a number", paths, needed)

    def count(self, *paths: str, needed: bool = False) -> int | None:
        """Return a whole number that is not negative."""
        return self._read_checked(as_count, "a whole number", paths, needed)

    def time(self, path: str, needed: bool = False) -> datetime | None:
        """Return a time in UTC."""
        return self._read_checked(_as_time, "a time as ISO 8601 has it", (path,), needed)

    def mapping(self, *paths: str, needed: bool = False) -> dict[str, Any]:
        """Return a mapping, empty without one."""
        found = self._read_checked(lambda v: v if isinstance(v, dict) else None, "a mapping", paths, needed)
        return found if found is not None else {}

    def _read_checked(self, check: Any, kind: str, paths: tuple[str, ...], needed: bool) -> Any:
        value = self.found(*paths)
        if value is None:
            if needed:
                self.problems.append(f"{paths[0]} is missing")
            return None
        checked = check(value)
        if checked is None:
            self.problems.append(f"{paths[0]} is {shown(repr(value), 60)}, which is not {kind}")
        return checked


def at(manifest: Any, *keys: str) -> Any:
    """Return what lies under these keys, None where there is no such place."""
    for key in keys:
        manifest = manifest.get(key) if isinstance(manifest, dict) else None
    return manifest


def as_number(value: Any) -> float | None:
    """Return a finite number of JSON as a float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def as_count(value: Any) -> int | None:
    """Return a whole number of JSON that is not negative, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _LARGEST:
        return None
    return int(value) if float(value).is_integer() else None


def shown(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a text in one line, without characters that are not seen, cut where it is too long."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+", " ", text)
    line = " ".join(line[: 4 * most].split())
    return line if len(line) <= most else line[: most - 1] + "…"


def plain(value: float) -> str:
    """Return a setting as it is written in a URL and on a page, e.g. `2`, `0.99`."""
    return f"{value:.12g}"


def short_name(name: str) -> str:
    """Return a model or a file as people call it: the last part of a path, the whole of a Hub's name.

    Data that was merged has several, with a plus between them.
    """
    return " + ".join(map(last_part, name.split(" + ")))


def last_part(name: str) -> str:
    """Return the last part of a path on some machine; a name of the Hub as it is."""
    is_path = name.startswith(("/", "./", "../", "~", "file:")) or re.match(r"[A-Za-z]:[\\/]", name)
    return (re.split(r"[\\/]+", name.rstrip("\\/"))[-1] or name) if is_path else name


def _as_time(value: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
