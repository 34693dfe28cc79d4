"""What a request asks for: the parts of its path, conditions, ranges, pages of a list, a body of limited size.

Routes match a path whose `%2F` are still apart from its `/`, so a part stays a part. Nothing of a URL ever becomes a
path of the store: names are looked up in the index, and files in a manifest.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from aiohttp import web
from aiohttp.typedefs import Handler

from eva_dist.gateway.responses import Refused

MOST_PATHS = 2000
"""How many paths one request may ask about."""
_PAGE_LENGTH = 1000
_BODY_S = 30.0
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class UrlPath:
    """The parts of a URL's path, decoded."""

    parts: tuple[str, ...]

    @property
    def encoded(self) -> str:
        """The path again, each part percent-encoded: what may be sent on."""
        return "/" + "/".join(quote(part, safe="@:~") for part in self.parts)


PATH = web.RequestKey("path", UrlPath)
"""Under which `refuse_odd_paths` leaves a request's path."""


@web.middleware
async def refuse_odd_paths(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let only paths through that mean one place, however they are decoded.

    Raises:
        Refused: 400: the path is no UTF-8, or has `.`, `..`, empty parts, backslashes or control characters in any
            spelling.
    """
    raw = request.rel_url.raw_path.strip("/")
    try:
        parts = tuple(unquote(part, errors="strict") for part in raw.split("/"))
    except UnicodeDecodeError as error:
        raise Refused(400, "the path of the URL must be percent-encoded UTF-8") from error
    if raw and not all(_is_plain_name(piece) for part in parts for piece in part.split("/")):
        raise Refused(
            400, "the path of the URL must not have empty parts, '.', '..', backslashes or control characters"
        )
    request[PATH] = UrlPath(parts)
    return await handler(request)


def _is_plain_name(piece: str) -> bool:
    return piece not in ("", ".", "..") and "\\" not in piece and not any(ord(c) < 32 or ord(c) == 127 for c in piece)


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` to `end` (exclusive) of a file of `size` bytes; `partial` if the client asked for a part."""

    start: int
    end: int
    size: int
    partial: bool


def has_current(request: web.Request, etag: str) -> bool:
    """Tell whether the client has this representation (`If-None-Match`, compared weakly): 304."""
    return any(tag.value in ("*", etag) for tag in request.if_none_match or ())


def fails_if_match(request: web.Request, etag: str) -> bool:
    """Tell whether the client wants another representation only (`If-Match`, compared strongly): 412."""
    given = request.if_match
    return given is not None and not any(tag.value == "*" or (tag.value == etag and not tag.is_weak) for tag in given)


def byte_range(headers: Mapping[str, str], etag: str, size: int) -> ByteRange | None:
    """Return what a GET asks for; None if no byte of it is there (416).

    Several ranges, other units and what cannot be read mean the whole, as the RFC allows (9110, section 14.2; aiohttp's
    `http_range` raises there); so does `If-Range` with another tag, or with a date, which we never give.
    """
    whole = ByteRange(0, size, size, False)
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
    return ByteRange(start, end, size, True) if start < end else None


def base_url(request: web.Request) -> str:
    """Return the gateway's own address as this client knows it."""
    host = request.headers.get("Host", "")
    if not host or not all(c.isascii() and (c.isalnum() or c in "-.:[]_") for c in host):
        raise Refused(400, "the Host header must name a host")
    secure = request.headers.get("X-Forwarded-Proto", request.scheme).strip().lower() == "https"
    return f"{'https' if secure else 'http'}://{host}"


def is_set(request: web.Request, *names: str) -> bool:
    """Tell whether one of these query parameters is `true` or `1`."""
    return any(request.query.get(name, "").lower() in ("true", "1") for name in names)


def cut_to_page(request: web.Request, items: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Cut a list to the page that was asked for; the Link header leads to the next."""
    limit, cursor = _query_number(request, "limit", _PAGE_LENGTH), _query_number(request, "cursor", 0)
    end = cursor + max(1, min(limit, _PAGE_LENGTH))
    if end >= len(items):
        return items[cursor:end], {}
    query = [(name, value) for name, value in request.query.items() if name != "cursor"]
    url = f"{base_url(request)}{request.rel_url.raw_path}?{urlencode([*query, ('cursor', str(end))])}"
    return items[cursor:end], {"Link": f'<{url}>; rel="next"'}


def _query_number(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise Refused(400, f"{name}={given[:20]} must be a whole number, 0 or more")
    return int(given)


async def read_body(request: web.Request) -> bytes:
    """Read a body of limited size (the application's) in limited time."""
    try:
        async with asyncio.timeout(_BODY_S):
            return await request.read()
    except TimeoutError as error:
        raise Refused(408, f"the body did not come within {_BODY_S:g} s", headers={"Connection": "close"}) from error


def paths_in_body(content_type: str, body: bytes) -> tuple[list[str], bool]:
    """Return paths and `expand` of a paths-info body, a form or JSON."""
    try:
        if content_type == "application/json":
            given = json.loads(body)
            asked, expand = given["paths"], bool(given.get("expand", False))
        else:
            form = parse_qs(body.decode(), max_num_fields=MOST_PATHS + 10)
            asked, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("true", "1")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(400, f"the body must be a form or JSON with at most {MOST_PATHS} `paths`") from error
    asked = [asked] if isinstance(asked, str) else asked
    if not isinstance(asked, list) or len(asked) > MOST_PATHS or not all(isinstance(one, str) for one in asked):
        raise Refused(400, f"`paths` must be a list of at most {MOST_PATHS} strings")
    return asked, expand
