"""The pages' routes: what a URL asks for is looked up, what may not be seen is not there, a page is sent."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from eva_dist.errors import StoreError
from eva_dist.gateway.access import visible
from eva_dist.gateway.catalogue.artifact import Around, artifact_page
from eva_dist.gateway.catalogue.assets import ASSETS
from eva_dist.gateway.catalogue.cache import ArtifactCache, ListedArtifact
from eva_dist.gateway.catalogue.compare import choose_page, compare_page
from eva_dist.gateway.catalogue.filters import Query, find
from eva_dist.gateway.catalogue.layout import POLICY, compare_url, render_page
from eva_dist.gateway.catalogue.listing import catalogue_page
from eva_dist.gateway.catalogue.snippets import server_of
from eva_dist.gateway.catalogue.sweep import MOST_POINTS, passes, sweep_page
from eva_dist.gateway.responses import COMMIT_HEADER, Refused

if TYPE_CHECKING:
    from eva_dist.gateway.index import Entry, Index
    from eva_dist.store.store import Store

log = logging.getLogger(__name__)

_COMPRESSED_FROM = 4096
Page = Callable[[web.Request], Awaitable[str]]


class NotThereError(Exception):
    """What the URL names is not in the store, or not for this reader to see; the message is shown."""


def add_pages(app: web.Application, index: Index, store: Store) -> None:
    """Add the catalogue to a gateway."""
    pages = Pages(index, store)
    add = app.router.add_get
    add("/", _page_handler(pages.catalogue))
    add("/static/{name}", _send_asset)
    add("/artifact/{namespace}/{name}/{revision}", _page_handler(pages.artifact))
    add("/compare", _page_handler(pages.compare))
    add("/sweep/{key}", _page_handler(pages.sweep))


class Pages:
    """The pages of a store, as text."""

    def __init__(self, index: Index, store: Store) -> None:
        """Show what the index lists and the store holds."""
        self._index = index
        self._cache = ArtifactCache(store)

    async def catalogue(self, request: web.Request) -> str:
        """Return what matches the URL."""
        listed = await self._visible_artifacts(request)
        query = Query.of(request.query, request.query.getall("pick", []))
        found, all_passes = await asyncio.to_thread(lambda: (find(listed, query), passes(listed)))
        return catalogue_page(found, {key: points for key, points in all_passes.items() if len(points) > 1})

    async def artifact(self, request: web.Request) -> str:
        """Return the page of an artifact."""
        names = request.match_info
        one = await self._find_artifact(request, f"{names['namespace']}/{names['name']}@{names['revision']}")
        listed, detail = await self._visible_artifacts(request), await self._cache.detail(one.snapshot)
        around = await asyncio.to_thread(_look_around, one, listed)
        return await asyncio.to_thread(artifact_page, one, detail, around, server_of(request))

    async def compare(self, request: web.Request) -> str:
        """Return two artifacts side by side, or the choice of the second one."""
        picks = request.query.getall("pick", [])[:2]
        if picks:
            raise web.HTTPFound(compare_url(*picks))
        a, b = request.query.get("a"), request.query.get("b")
        if not a:
            return choose_page(None, [])
        one, listed = await self._find_artifact(request, a), await self._visible_artifacts(request)
        if not b:
            return choose_page(one, _sort_by_nearness(one, listed))
        other = await self._find_artifact(request, b)
        if one.revision == other.revision:
            return choose_page(one, _sort_by_nearness(one, listed), "That is the same artifact twice.")
        details = await self._cache.detail(one.snapshot), await self._cache.detail(other.snapshot)
        return await asyncio.to_thread(compare_page, (one, other), details, _sort_by_nearness(one, listed))

    async def sweep(self, request: web.Request) -> str:
        """Return the artifacts of a pass."""
        points = passes(await self._visible_artifacts(request)).get(request.match_info["key"], [])
        if not points:
            raise NotThereError("No artifact here came of that pass.")
        chosen = sorted(points, key=_by_settings)[:MOST_POINTS]
        details = await asyncio.gather(*(self._cache.detail(one.snapshot) for one in chosen))
        return await asyncio.to_thread(sweep_page, chosen, details, len(points))

    async def _visible_artifacts(self, request: web.Request) -> list[ListedArtifact]:
        """Return what the reader may see."""
        sees = visible(request)
        entries = [entry for entry in await self._index.entries() if sees(_namespace_of(entry.revision.repo_id))]
        return await self._cache.listed(entries)

    async def _find_artifact(self, request: web.Request, name: str) -> ListedArtifact:
        """Return the artifact called `team/name[@revision]`.

        Raises:
            NotThereError: there is none, or the reader may not see it: the answer is the same.
        """
        repo_id, _, revision = name.partition("@")
        entry: Entry | None = None
        if visible(request)(_namespace_of(repo_id)):
            entry = await self._index.entry(repo_id, revision or "main")
        if entry is None:
            raise NotThereError(f"There is no artifact {name} here.")
        return (await self._cache.listed([entry]))[0]


def _page_handler(page: Page) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that sends the page, not changed, not there, or that the store cannot be read."""

    async def handler(request: web.Request) -> web.Response:
        try:
            return _page_response(request, await page(request))
        except NotThereError as error:
            return _page_response(request, _apology_page("Not found", str(error)), 404)
        except StoreError as error:
            log.error("%s: %s", request.path, error)
            told = "The store cannot be read just now. Try again in a moment; the server's log says more."
            return _page_response(request, _apology_page("The store does not answer", told), 503)

    return handler


def _apology_page(title: str, text: str) -> str:
    return render_page("apology.html", title, trail=[(title.lower(), None)], text=text)


def _page_response(request: web.Request, page: str, status: int = 200) -> web.Response:
    body = page.encode("utf-8", "replace")
    tag = hashlib.sha256(body).hexdigest()[:32]
    response = web.Response(status=status, body=body, content_type="text/html", charset="utf-8")
    if status == 200 and any(known.value in (tag, "*") for known in request.if_none_match or ()):
        response = web.Response(status=304)
    response.headers["ETag"] = f'W/"{tag}"'
    response.headers["Cache-Control"] = "private, max-age=2, must-revalidate" if status == 200 else "no-store"
    response.headers["Vary"] = "Accept-Encoding, Authorization, Cookie, Host"
    return _add_guards(request, response)


def refusal_page(request: web.Request, refused: Refused) -> web.Response:
    """Return what a person sees of a refusal, with the headers that clients look at."""
    title = {401: "A token is needed", 404: "Not found"}.get(refused.status, "This cannot be answered")
    response = _page_response(request, _apology_page(title, f"{refused}."), refused.status)
    response.headers.update({name: value for name, value in refused.headers.items() if name != COMMIT_HEADER})
    return response


async def _send_asset(request: web.Request) -> web.Response:
    asset = next((asset for asset in ASSETS.values() if asset.name == request.match_info["name"]), None)
    if asset is None:
        return _page_response(request, _apology_page("Not found", "There is no such file."), 404)
    response = web.Response(body=asset.content, content_type=asset.type, charset="utf-8")
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return _add_guards(request, response)


def _add_guards(request: web.Request, response: web.Response) -> web.Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    if isinstance(response.body, bytes) and len(response.body) >= _COMPRESSED_FROM:
        response.enable_compression()
    return response


def _look_around(one: ListedArtifact, listed: Sequence[ListedArtifact]) -> Around:
    known = {other.facts.fingerprint: other for other in reversed(listed)}
    own = one.facts.fingerprint
    children = [other for other in listed if any(own == ancestor.fingerprint for ancestor in other.facts.ancestors)]
    others = [
        other for other in listed if other.revision.repo_id == one.revision.repo_id and other.revision != one.revision
    ]
    of_pass = next(
        (
            (key, len(of))
            for key, of in passes(listed).items()
            if len(of) > 1 and any(one.revision == o.revision for o in of)
        ),
        None,
    )
    return Around(others, _sort_by_nearness(one, listed), known, children, of_pass)


def _sort_by_nearness(one: ListedArtifact, listed: Sequence[ListedArtifact]) -> list[ListedArtifact]:
    """Return the others: those of the repo first, then those of the base model."""

    def distance(other: ListedArtifact) -> tuple[bool, bool]:
        return other.revision.repo_id != one.revision.repo_id, other.facts.base_model != one.facts.base_model

    return sorted((other for other in listed if other.revision != one.revision), key=distance)


def _by_settings(one: ListedArtifact) -> tuple[float, ...]:
    facts = one.facts
    return tuple(-1.0 if value is None else value for value in (facts.r, facts.rho, facts.tau)) + (facts.whiten,)


def _namespace_of(repo_id: str) -> str:
    return repo_id.partition("/")[0]
