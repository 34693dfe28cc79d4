"""The Hub's read routes over a store.

    /api/models                                     list
    /api/models/{ns}/{name}[/revision/{rev}]        info
    /api/models/{ns}/{name}/tree/{rev}[/{folder}]   files and folders
    /api/models/{ns}/{name}/paths-info/{rev}        POST: some of them
    /api/models/{ns}/{name}/refs, /commits/{rev}, /auth-check
    /api/whoami-v2
    /{ns}/{name}/resolve/{rev}/{path}               HEAD and GET

A namespace that the store holds anything of, or held while this gateway ran, or that a token is for, is ours, and is
answered from the store alone: what it lacks (a repo, a revision, a file) is missing. The upstream is never asked for
it: anybody may register our namespace there, and clients would get a stranger's files in place of an artifact that was
removed or mistyped; and names of private repos stay here. Every other namespace is the upstream's, if there is one.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

from aiohttp import web

from eva_dist.gateway import hub_models
from eva_dist.gateway.access import TOKEN_NAME, Access, visible
from eva_dist.gateway.downloads import Files
from eva_dist.gateway.index import Entry, Index, View, last_moved
from eva_dist.gateway.paths import Path, parts_of
from eva_dist.gateway.responses import (
    COMMIT_HEADER,
    ENTRY_NOT_FOUND,
    REPO_NOT_FOUND,
    Refused,
    json_answer,
    no_repo,
    no_revision,
)
from eva_dist.gateway.upstream import Upstream, base_url
from eva_dist.store.name_rules import MAIN

_PAGE = 1000
_MOST_PATHS = 2000
_BODY_S = 30.0
_OTHER_KINDS = ("datasets", "spaces")
_OUR_PAGES = ("artifact", "compare", "static", "sweep")
_NO_SPACE = ("api", *_OTHER_KINDS, *_OUR_PAGES)
"""First parts of URLs that are no namespace."""
_WE_HAVE_NONE = ("pipeline_tag", "apps", "inference", "inference_provider", "num_parameters")
"""Search settings that no artifact of ours meets."""
_ONLY_READS = "this gateway only serves what a store holds; publish into the store (`eva-dist push`, jobs)"

_VIEW = web.RequestKey("view", View)

Item = dict[str, Any]


class Hub:
    """Answers what clients of the Hub ask, out of an index and files."""

    def __init__(self, index: Index, files: Files, access: Access, upstream: Upstream | None = None) -> None:
        self._index = index
        self._files = files
        self._access = access
        self._upstream = upstream

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for anything but a page."""
        path = parts_of(request)
        parts = path.parts
        if request.method not in ("GET", "HEAD") and not (request.method == "POST" and "paths-info" in parts[3:5]):
            raise Refused(405, _ONLY_READS, headers={"Allow": "GET, HEAD"})
        if parts[:2] == ("api", "models"):
            return await (self._list(request) if len(parts) == 2 else self._api(request, path))
        if parts == ("api", "whoami-v2"):
            return self._whoami(request)
        if parts[0] == "api" and parts[1:2] not in [(kind,) for kind in _OTHER_KINDS]:
            raise Refused(404, "there is no such route here", ENTRY_NOT_FOUND)
        if parts[0] not in ("api", *_OTHER_KINDS) and len(parts) >= 5 and parts[2] in ("resolve", "raw"):
            return await self._resolve(request, path)
        if request.method in ("GET", "HEAD") and len(parts) >= 2 and _names_page(parts) and parts[0] not in _NO_SPACE:
            return await self._page(request, path)
        return await self._elsewhere(request, path)

    async def _page(self, request: web.Request, path: Path) -> web.StreamResponse:
        """Lead who comes by a Hub's URL to the artifact's page: `/team/name/`, `.../tree/v1/plots`, `.../blob/v1/a`."""
        entry = await self._entry(request, path.parts, path.parts[3] if len(path.parts) > 3 else MAIN)
        if entry is None:
            return await self._elsewhere(request, path)
        page = Path(("artifact", *path.parts[:2], entry.revision.revision))
        return web.Response(status=302, headers={"Location": page.encoded, "Cache-Control": "no-cache"})

    async def page_elsewhere(self, request: web.Request) -> web.StreamResponse | None:
        """Return a redirect to the upstream's page of a repo that is not ours; None if there is none to go to."""
        path = parts_of(request)
        is_repo = len(path.parts) >= 2 and _names_page(path.parts) and path.parts[0] not in _OUR_PAGES
        if self._upstream is None or not self._access.is_open or not is_repo:
            return None
        try:
            ours = await self._entries(request, path.parts)
        except Refused:
            return None
        return None if ours else self._upstream.redirect(request, path)

    # --- which repo, which revision ---

    async def _view(self, request: web.Request) -> View:
        """Return the view that this request is answered from, all of it."""
        if _VIEW not in request:
            request[_VIEW] = await self._index.view()
        return request[_VIEW]

    async def _entries(self, request: web.Request, parts: Sequence[str]) -> tuple[Entry, ...]:
        """Return the revisions of the repo `parts[0]/parts[1]`; empty: its namespace is none of ours.

        Raises:
            Refused: 404: the namespace is ours, and has no such repo, or not for this reader to see; 409, all manifests
                of the repo are damaged.
        """
        view = await self._view(request)
        namespace, repo_id = parts[0], "/".join(parts[:2])
        if visible(request)(namespace):
            if entries := view.by_repo.get(repo_id, ()):
                return entries
            if problems := [problem for (broken_id, _), problem in view.broken.items() if broken_id == repo_id]:
                raise _damaged(repo_id, "its revisions", any(problem.passes for problem in problems))
        # Names on the Hub are the same in any case.
        if namespace.casefold() in {name.casefold() for name in view.namespaces | self._access.namespaces}:
            raise no_repo(repo_id)
        return ()

    async def _entry(self, request: web.Request, parts: Sequence[str], revision: str) -> Entry | None:
        """Return what a revision of the repo means; None: the namespace is none of ours.

        Raises:
            Refused: 404, or 409: its manifest is damaged.
        """
        repo_id = "/".join(parts[:2])
        if visible(request)(parts[0]):
            found = self._index.known(repo_id, revision)
            if found := found or self._index.find(await self._view(request), repo_id, revision):
                return found
            if problem := (await self._view(request)).broken.get((repo_id, revision)):
                raise _damaged(repo_id, revision, problem.passes)
        entries = await self._entries(request, parts)
        if not entries:
            return None
        raise no_revision(repo_id, revision, [entry.revision.revision for entry in entries])

    async def _elsewhere(self, request: web.Request, path: Path, body: bytes | None = None) -> web.StreamResponse:
        """Answer for a repo that is none of ours."""
        parts = path.parts[1:] if path.parts[0] == "api" else path.parts
        parts = parts[1:] if parts[0] in ("models", *_OTHER_KINDS) else parts
        if len(parts) < 1:
            raise Refused(404, "the gateway has models only", REPO_NOT_FOUND)
        await self._entries(request, parts)  # refuses those that must not be asked for
        if self._upstream is None or "xet-read-token" in parts[1:3]:
            raise no_repo("/".join(parts[:2]))
        is_file = "resolve" in parts[1:3] or "raw" in parts[1:3]
        if path.parts[0] != "api" and not is_file:
            # Who is redirected brings its token along, and would show it to the upstream.
            if not self._access.is_open or request.method not in ("GET", "HEAD") or not _names_page(parts):
                raise Refused(404, "there is no such route here", ENTRY_NOT_FOUND)
            return self._upstream.redirect(request, path)
        return await self._upstream.answer(request, path, body)

    # --- files ---

    async def _resolve(self, request: web.Request, path: Path) -> web.StreamResponse:
        revision, file = path.parts[3], "/".join(path.parts[4:])
        entry = await self._entry(request, path.parts, revision)
        if entry is None:
            return await self._elsewhere(request, path)
        return await self._files.answer(request, entry, file, pinned=revision == entry.snapshot.commit)

    # --- API ---

    async def _api(self, request: web.Request, path: Path) -> web.StreamResponse:
        """Answer for `/api/models/{ns}/{name}[/{action}[/{rev}[/{folder}]]]`."""
        repo, (action, revision, *rest) = path.parts[2:4], (*path.parts[4:], "", "")[: max(2, len(path.parts) - 4)]
        body = await _read(request) if request.method == "POST" else None
        if len(repo) < 2:
            return await self._elsewhere(request, path, body)
        if action in ("", "refs", "auth-check"):
            revision = revision or MAIN
        entry = await self._entry(request, repo, revision or MAIN)
        if entry is None:
            return await self._elsewhere(request, path, body)
        entries = (await self._view(request)).by_repo.get("/".join(repo), (entry,))
        answers: dict[str, Callable[[], web.Response]] = {
            "": lambda: self._info(request, entry, entries),
            "revision": lambda: self._info(request, entry, entries),
            "tree": lambda: self._tree(request, entry, "/".join(rest).strip("/")),
            "refs": lambda: json_answer(hub_models.refs(entries)),
            "commits": lambda: json_answer(hub_models.commits(entry)),
            "auth-check": lambda: json_answer({}),
            "paths-info": lambda: self._paths(request, entry, body or b""),
        }
        if action not in answers or (not revision and action in ("revision", "tree", "commits", "paths-info")):
            raise Refused(404, f"there is no route {action!r} here; {_ONLY_READS}", ENTRY_NOT_FOUND)
        return answers[action]()

    def _info(self, request: web.Request, entry: Entry, entries: Sequence[Entry]) -> web.Response:
        blobs = request.query.get("blobs", "").lower() in ("true", "1")
        found = hub_models.model(entry, entries, not self._access.is_open, blobs)
        return json_answer(found, {COMMIT_HEADER: entry.snapshot.commit})

    def _tree(self, request: web.Request, entry: Entry, folder: str) -> web.Response:
        recursive, expand = (request.query.get(name, "").lower() in ("true", "1") for name in ("recursive", "expand"))
        found = hub_models.tree(entry, folder, recursive, expand)
        if found is None:
            repo_id = entry.revision.repo_id
            headers = {COMMIT_HEADER: entry.snapshot.commit}
            raise Refused(404, f"{repo_id} has no folder {folder}", ENTRY_NOT_FOUND, headers)
        page, link = _page(request, found)
        return json_answer(page, {COMMIT_HEADER: entry.snapshot.commit, **link})

    def _paths(self, request: web.Request, entry: Entry, body: bytes) -> web.Response:
        if request.method != "POST":
            raise Refused(405, "paths-info is asked with POST", headers={"Allow": "POST"})
        asked, expand = _paths_of(request.content_type, body)
        return json_answer(hub_models.paths(entry, asked, expand), {COMMIT_HEADER: entry.snapshot.commit})

    async def _list(self, request: web.Request) -> web.StreamResponse:
        """List the store's repos that the request may see; the upstream's are not among them."""
        view, sees, query = await self._view(request), visible(request), request.query
        author, search = query.get("author"), query.get("search", "").lower()
        wanted = {tag for value in query.getall("filter", []) for tag in value.split(",") if tag}
        full = any(query.get(name, "").lower() in ("true", "1") for name in ("full", "cardData")) or "expand" in query
        gated = query.get("gated", "false").lower() in ("true", "1")
        found = []
        for repo_id, entries in view.by_repo.items():
            namespace, last = repo_id.partition("/")[0], last_moved(entries)
            if not sees(namespace) or author not in (None, namespace) or search not in repo_id.lower():
                continue
            if gated or any(name in query for name in _WE_HAVE_NONE) or not wanted <= set(hub_models.tags(last)):
                continue
            describe = hub_models.model if full else hub_models.listed
            found.append(describe(last, entries, not self._access.is_open))
        sort = query.get("sort")
        if sort in ("lastModified", "createdAt"):
            found.sort(key=lambda one: str(one[sort]), reverse=query.get("direction", "-1") == "-1")
        page, link = _page(request, found)
        return json_answer(page, link)

    def _whoami(self, request: web.Request) -> web.Response:
        name = request.get(TOKEN_NAME)
        if name is None:
            raise Refused(401, "this gateway has no tokens: everybody on this machine may read")
        role = {"displayName": name, "role": "read"}
        return json_answer(
            {
                "type": "user",
                "name": name,
                "fullname": name,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": role},
            }
        )


def _names_page(parts: Sequence[str]) -> bool:
    """Tell whether the rest of a Hub's URL, from the namespace on, is that of a page about a repo."""
    return len(parts) <= 2 or parts[2] in ("tree", "blob")


async def _read(request: web.Request) -> bytes:
    """Read a body of limited size (the application's) in limited time."""
    try:
        async with asyncio.timeout(_BODY_S):
            return await request.read()
    except TimeoutError as error:
        raise Refused(408, f"the body did not come within {_BODY_S:g} s", headers={"Connection": "close"}) from error


def _paths_of(content_type: str, body: bytes) -> tuple[list[str], bool]:
    """Return paths and `expand` of a paths-info body, a form or JSON."""
    try:
        if content_type == "application/json":
            given = json.loads(body)
            asked, expand = given["paths"], bool(given.get("expand", False))
        else:
            form = parse_qs(body.decode(), max_num_fields=_MOST_PATHS + 10)
            asked, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("true", "1")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(400, f"the body must be a form or JSON with at most {_MOST_PATHS} `paths`") from error
    asked = [asked] if isinstance(asked, str) else asked
    if not isinstance(asked, list) or len(asked) > _MOST_PATHS or not all(isinstance(one, str) for one in asked):
        raise Refused(400, f"`paths` must be a list of at most {_MOST_PATHS} strings")
    return asked, expand


def _page(request: web.Request, found: list[Item]) -> tuple[list[Item], dict[str, str]]:
    """Cut a list to the page that was asked for; the Link header leads to the next."""
    limit, cursor = (_number(request, name, default) for name, default in (("limit", _PAGE), ("cursor", 0)))
    end = cursor + max(1, min(limit, _PAGE))
    if end >= len(found):
        return found[cursor:end], {}
    query = [(name, value) for name, value in request.query.items() if name != "cursor"]
    url = f"{base_url(request)}{request.rel_url.raw_path}?{urlencode([*query, ('cursor', str(end))])}"
    return found[cursor:end], {"Link": f'<{url}>; rel="next"'}


def _number(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise Refused(400, f"{name}={given[:20]} must be a whole number, 0 or more")
    return int(given)


def _damaged(repo_id: str, revision: str, passes: bool) -> Refused:
    if passes:
        message = f"{repo_id}: {revision} cannot be read from the store at the moment; try again later"
        return Refused(503, message, headers={"Retry-After": "5"})
    return Refused(409, f"{repo_id}: what the store has of {revision} is damaged; publish it again")
