"""Conditional and partial requests for one representation (RFC 9110, sections 13 and 14); pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*\Z", re.IGNORECASE)
_TAGS = re.compile(r'(W/)?"([^"]*)"')


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` (exclusive) of a file of `size` bytes; `partial` if the client asked for a part."""

    start: int
    end: int
    size: int
    partial: bool

    @property
    def content_range(self) -> str:
        """The header's value of a 206."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """Tell whether the client has this representation (`If-None-Match`; compared weakly)."""
    given = headers.get("If-None-Match", "").strip()
    return given == "*" or etag in [tag for _, tag in _TAGS.findall(given)]


def is_another(headers: Mapping[str, str], etag: str) -> bool:
    """Tell whether the client wants another representation only (`If-Match`; compared strongly): 412."""
    given = headers.get("If-Match", "").strip()
    return bool(given) and given != "*" and etag not in [tag for weak, tag in _TAGS.findall(given) if not weak]


def span_of(headers: Mapping[str, str], etag: str, size: int) -> Span | None:
    """Return what a GET asks for; None if no byte of it is there (416).

    Several ranges, other units and what cannot be read mean the whole, as the RFC allows; so does `If-Range` with
    another tag, or with a date, which we never give.
    """
    whole = Span(0, size, size, False)
    given = _RANGE.match(headers.get("Range", "").strip())
    condition = headers.get("If-Range")
    if given is None or (condition is not None and condition.strip() != f'"{etag}"'):
        return whole
    first, last = given.groups()
    if not first and not last:
        return whole
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return whole
    return Span(start, end, size, True) if start < end else None
