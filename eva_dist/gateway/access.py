"""Who may see which namespaces."""

from collections.abc import Callable

from aiohttp import web

Sees = Callable[[str], bool]
SEES: web.RequestKey[Sees] = web.RequestKey("sees", object)  # type: ignore[arg-type]
"""Under which the middleware leaves its answer in a request."""


def visible(request: web.Request) -> Sees:
    """Return whether the request may see a namespace (`team` of `team/name`), as a function of its name."""
    return request[SEES]
