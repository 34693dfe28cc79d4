"""What a URL asks for, read from its raw path: each part is decoded once, and refused if it could mean another place.

Routers decode and join before they match, so that `%2F` and `/` become the same; here a part stays a part. Nothing
of a URL ever becomes a path of the store: names are looked up in the index, and files in a manifest.
"""

from dataclasses import dataclass
from urllib.parse import quote, unquote

from aiohttp import web

from eva_dist.gateway.responses import Refused


@dataclass(frozen=True)
class Path:
    """The parts of a URL's path, decoded."""

    parts: tuple[str, ...]

    @property
    def encoded(self) -> str:
        """The path again, each part percent-encoded: what may be sent on."""
        return "/" + "/".join(quote(part, safe="@:~") for part in self.parts)


def parts_of(request: web.Request) -> Path:
    """Read a request's path.

    Raises:
        Refused: 400: it is no UTF-8, or has `.`, `..`, backslashes or control characters in any spelling.
    """
    raw = request.rel_url.raw_path.strip("/")
    try:
        parts = tuple(unquote(part, errors="strict") for part in raw.split("/"))
    except UnicodeDecodeError as error:
        raise Refused(400, "the path of the URL must be percent-encoded UTF-8") from error
    for part in parts:
        if not all(_is_plain(piece) for piece in part.split("/")) and raw:
            raise Refused(
                400, "the path of the URL must not have empty parts, '.', '..', backslashes or control characters"
            )
    return Path(parts)


def _is_plain(piece: str) -> bool:
    return piece not in ("", ".", "..") and "\\" not in piece and not any(ord(c) < 32 or ord(c) == 127 for c in piece)
