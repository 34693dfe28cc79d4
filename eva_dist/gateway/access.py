"""Who may see which namespaces."""

from collections.abc import Callable

from aiohttp import web

Sees = Callable[[str], bool]
SEES = web.RequestKey("sees", Callable[[str], bool])
"""Under which the middleware leaves its answer in a request."""


def visible(request: web.Request) -> Sees:
    """Return whether the request may see a namespace (`team` of `team/name`), as a function of its name."""
    return request[SEES]
