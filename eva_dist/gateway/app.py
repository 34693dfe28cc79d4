"""The gateway's application: routes, and what holds for every request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler

from eva_dist.gateway.access import SEES
from eva_dist.gateway.index import Index

if TYPE_CHECKING:
    from eva_dist.store.store import Store


def make_app(store: Store, *, max_age_s: float = 2.0) -> web.Application:
    """Make the application that serves a store."""
    app = web.Application(middlewares=[_see_all])
    index = Index(store, max_age_s)
    app.router.add_get("/healthz", _healthz)
    try:
        from eva_dist.gateway.pages import add_pages
    except ImportError:
        return app
    add_pages(app, index, store)
    return app


@web.middleware
async def _see_all(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[SEES] = lambda namespace: True
    return await handler(request)


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")
