"""The gateway's application: routes, and what holds for every request."""

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.gateway.access import Access, check_of
from eva_dist.gateway.catalogue import add_pages, refusal_page
from eva_dist.gateway.downloads import Downloads
from eva_dist.gateway.hub_api import HubApi
from eva_dist.gateway.index import Index
from eva_dist.gateway.requests import refuse_odd_paths
from eva_dist.gateway.responses import Refused
from eva_dist.gateway.upstream import Upstream
from eva_dist.store.store import Store

log = logging.getLogger(__name__)

_LARGEST_BODY = 1 << 20


def make_app(
    store: Store, *, access: Access | None = None, upstream: Upstream | None = None, max_age_s: float = 2.0
) -> web.Application:
    """Make the application that serves a store.

    Args:
        store: what is served.
        access: tokens; None: everybody sees everything.
        upstream: where what the store does not have is looked for.
        max_age_s: how old the gateway's view of the store may be.
    """
    access = access or Access()
    index = Index(store, max_age_s)
    app = web.Application(
        middlewares=[_answer_refusals, check_of(access), refuse_odd_paths], client_max_size=_LARGEST_BODY
    )
    if upstream is not None:
        app.cleanup_ctx.append(upstream.opened)
    app.on_response_prepare.append(_add_headers)
    app.router.add_get("/healthz", _say_healthy)
    add_pages(app, index, store)
    HubApi(index, Downloads(store), access, upstream).add_routes(app.router)  # last: they take what is no page
    return app


async def _say_healthy(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


@web.middleware
async def _answer_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what is raised into answers that clients understand; nothing inside is shown."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        refused = Refused(error.status, error.text or error.reason)
    except Refused as error:
        refused = error
    except (IntegrityError, ArtifactNotFoundError) as error:
        log.error("%s: %s", request.path, error)
        refused = Refused(409, "this is damaged in the store, or gone from it; publish the artifact again")
    except StoreError as error:
        log.error("%s: %s", request.path, error)
        message = "the gateway cannot read its store at the moment; try again later"
        refused = Refused(503, message, headers={"Retry-After": "5"})
    except Exception as error:
        if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
            return web.Response(status=499)  # the client has left: nobody reads this
        log.exception("%s %s failed", request.method, request.path)
        refused = Refused(500, "the gateway failed; its log says why")
    return refusal_page(request, refused) if _is_browsed(request) else refused.response()


def _is_browsed(request: web.Request) -> bool:
    """Tell whether a person looks at a page: browsers ask for HTML, the Hub's clients do not."""
    machine = request.path.startswith(("/api/", "/static/")) or "/resolve/" in request.path
    return request.method == "GET" and not machine and "text/html" in request.headers.get("Accept", "")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "eva-dist"
    for name, value in (
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "same-origin"),
        ("X-Frame-Options", "DENY"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
    ):
        response.headers.setdefault(name, value)
