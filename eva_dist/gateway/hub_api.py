"""The Hub's read routes over a store; `HubApi.add_routes` is their list.

A namespace that the store holds anything of, or held while this gateway ran, or that a token is for, is ours, and is
answered from the store alone: what it lacks (a repo, a revision, a file) is missing. The upstream is never asked for
it: anybody may register our namespace there, and clients would get a stranger's files in place of an artifact that was
removed or mistyped; and names of private repos stay here. Every other namespace is the upstream's, if there is one.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler

from eva_dist.gateway import hub_models
from eva_dist.gateway.access import TOKEN_NAME, Access, visible
from eva_dist.gateway.downloads import Downloads
from eva_dist.gateway.index import Entry, Index, StoreView, last_moved
from eva_dist.gateway.requests import PATH, UrlPath, cut_to_page, is_set, paths_in_body, read_body
from eva_dist.gateway.responses import (
    COMMIT_HEADER,
    ENTRY_NOT_FOUND,
    REPO_NOT_FOUND,
    Refused,
    json_answer,
    no_repo,
    no_revision,
)
from eva_dist.gateway.upstream import Upstream
from eva_dist.store.store_reader import MAIN

_OTHER_KINDS = ("datasets", "spaces")
_KINDS = ("models", *_OTHER_KINDS)
_OUR_PAGES = ("artifact", "compare", "static", "sweep")
_UNMET_SETTINGS = ("pipeline_tag", "apps", "inference", "inference_provider", "num_parameters")
"""Search settings that no artifact of ours meets."""
_ONLY_READS = "this gateway only serves what a store holds; publish into the store (`eva-dist push`, jobs)"

# Clients that were given an endpoint with a slash at its end ask for `//api/...`, and people end URLs with one.
_API, _END = "/{start:/*}api", "{end:/*}"
_REVISION, _REST = "{revision:[^/]+}", "{rest:(?:/.*)?}"
_REPO = "{namespace:[^/]+}/{name:[^/]+}"
_API_REPO = f"{_API}/models/{_REPO}"


def _repo_but(*first_parts: str) -> str:
    """Return the pattern of a repo at a URL's start; `first_parts` are no namespaces."""
    return f"/{{start:/*}}{{namespace:(?!(?:{'|'.join(first_parts)})/)[^/]+}}/{{name:[^/]+}}"


_FILE_REPO, _PAGE_REPO = _repo_but("api", *_OTHER_KINDS), _repo_but("api", *_OTHER_KINDS, *_OUR_PAGES)

_VIEW = web.RequestKey("view", StoreView)

Answer = Callable[[web.Request, Entry], Awaitable[web.StreamResponse]]


class HubApi:
    """Answers what clients of the Hub ask, out of an index and files."""

    def __init__(self, index: Index, downloads: Downloads, access: Access, upstream: Upstream | None = None) -> None:
        self._index = index
        self._downloads = downloads
        self._access = access
        self._upstream = upstream

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Declare the routes. The first that fits counts; the last ones take whatever no other does."""
        of_entry = self._of_entry
        router.add_get(f"{_API}/models{_END}", self._list_repos)
        router.add_get(f"{_API}/whoami-v2{_END}", self._answer_whoami)
        router.add_get(f"{_API_REPO}{_END}", of_entry(self._describe_repo))
        router.add_get(f"{_API_REPO}/revision/{_REVISION}{_REST}", of_entry(self._describe_repo))
        router.add_get(f"{_API_REPO}/tree/{_REVISION}{{folder:(?:/.*)?}}", of_entry(self._list_folder))
        router.add_get(f"{_API_REPO}/commits/{_REVISION}{_REST}", of_entry(self._list_commits))
        router.add_get(f"{_API_REPO}/refs{_END}", of_entry(self._list_refs))
        router.add_get(f"{_API_REPO}/auth-check{_END}", of_entry(self._check_auth))
        router.add_post(f"{_API_REPO}/paths-info/{_REVISION}{_REST}", of_entry(self._describe_paths))
        router.add_get(f"{_API_REPO}/paths-info/{_REVISION}{_REST}", of_entry(self._refuse_get))
        router.add_post(f"{_API_REPO}/{{action:paths-info}}{_END}", of_entry(self._refuse_action))
        router.add_get(f"{_API_REPO}/{{action:[^/]+}}{_END}", of_entry(self._refuse_action))
        router.add_get(f"{_API_REPO}/{{action:[^/]+}}/{_REVISION}{_REST}", of_entry(self._refuse_action))
        router.add_get(
            f"{_FILE_REPO}/{{how:resolve|raw}}/{_REVISION}/{{file:.+?}}{_END}", of_entry(self._download_file)
        )
        router.add_get(f"{_PAGE_REPO}{_END}", of_entry(self._lead_to_page))
        router.add_get(f"{_PAGE_REPO}/{{how:tree|blob}}{_END}", of_entry(self._lead_to_page))
        router.add_get(f"{_PAGE_REPO}/{{how:tree|blob}}/{_REVISION}{_REST}", of_entry(self._lead_to_page))
        router.add_post(f"/{{start:/*}}{{before:(?:[^/]+/){{3,4}}}}paths-info{_REST}", self._answer_elsewhere)
        router.add_get("/{path:.*}", self._answer_elsewhere)
        router.add_route("*", "/{path:.*}", self._refuse_method)

    # --- which repo, which revision ---

    def _of_entry(self, answer: Answer) -> Handler:
        """Return a handler that answers for the revision that the URL names, or has the upstream answer."""

        async def handler(request: web.Request) -> web.StreamResponse:
            entry = await self._find_entry(request)
            return await (self._answer_elsewhere(request) if entry is None else answer(request, entry))

        return handler

    async def _current_view(self, request: web.Request) -> StoreView:
        """Return the view that this request is answered from, all of it."""
        if _VIEW not in request:
            request[_VIEW] = await self._index.view()
        return request[_VIEW]

    async def _find_entry(self, request: web.Request) -> Entry | None:
        """Return what the URL's revision means, `main` if it has none; None: the namespace is none of ours.

        Raises:
            Refused: 404, or 409: its manifest is damaged.
        """
        names = request.match_info
        namespace, revision = names["namespace"], names.get("revision", MAIN)
        repo_id = f"{namespace}/{names['name']}"
        if visible(request)(namespace):
            entry = self._index.known(repo_id, revision)
            if entry := entry or self._index.find(await self._current_view(request), repo_id, revision):
                return entry
            if problem := (await self._current_view(request)).broken.get((repo_id, revision)):
                raise _damage_refusal(repo_id, revision, problem.passes)
        entries = await self._find_repo(request, (namespace, names["name"]))
        if not entries:
            return None
        raise no_revision(repo_id, revision, [entry.revision.revision for entry in entries])

    async def _find_repo(self, request: web.Request, parts: Sequence[str]) -> tuple[Entry, ...]:
        """Return the revisions of the repo `parts[0]/parts[1]`; empty: its namespace is none of ours.

        Raises:
            Refused: 404: the namespace is ours, and has no such repo, or not for this reader to see; 409, all manifests
                of the repo are damaged.
        """
        view = await self._current_view(request)
        namespace, repo_id = parts[0], "/".join(parts[:2])
        if visible(request)(namespace):
            if entries := view.by_repo.get(repo_id, ()):
                return entries
            if problems := [problem for (broken_id, _), problem in view.broken.items() if broken_id == repo_id]:
                raise _damage_refusal(repo_id, "its revisions", any(problem.passes for problem in problems))
        # Names on the Hub are the same in any case.
        if namespace.casefold() in {name.casefold() for name in view.namespaces | self._access.namespaces}:
            raise no_repo(repo_id)
        return ()

    async def _answer_elsewhere(self, request: web.Request) -> web.StreamResponse:
        """Answer for a repo that is none of ours, or for a URL that means nothing here."""
        parts = request[PATH].parts
        if is_api := parts[0] == "api":
            parts = parts[1:]
            if not parts or parts[0] not in _KINDS:
                raise _no_route()
        parts = parts[1:] if parts[0] in _KINDS else parts
        if not parts:
            raise Refused(404, "the gateway has models only", REPO_NOT_FOUND)
        # Refuses what must not be asked for; a repo of ours gets here by a URL that means nothing.
        ours = await self._find_repo(request, parts)
        if ours or self._upstream is None or "xet-read-token" in parts[1:3]:
            raise no_repo("/".join(parts[:2]))
        if is_api or "resolve" in parts[1:3] or "raw" in parts[1:3]:
            body = await read_body(request) if request.method == "POST" else None
            return await self._upstream.answer(request, body)
        # Who is redirected brings its token along, and would show it to the upstream.
        is_page = len(parts) <= 2 or parts[2] in ("tree", "blob")
        if not self._access.is_open or not is_page or request.method == "POST":
            raise _no_route()
        return self._upstream.redirect(request)

    # --- pages and files ---

    async def _lead_to_page(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        """Lead who comes by a Hub's URL to the artifact's page: `/team/name`, `.../tree/v1/plots`, `.../blob/v1/a`."""
        names = request.match_info
        page = UrlPath(("artifact", names["namespace"], names["name"], entry.revision.revision))
        return web.Response(status=302, headers={"Location": page.encoded, "Cache-Control": "no-cache"})

    async def _download_file(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        pinned = request.match_info["revision"] == entry.snapshot.commit
        return await self._downloads.answer(request, entry, request.match_info["file"], pinned)

    # --- API ---

    async def _describe_repo(self, request: web.Request, entry: Entry) -> web.Response:
        entries = (await self._current_view(request)).by_repo.get(entry.revision.repo_id, (entry,))
        described = hub_models.model(entry, entries, not self._access.is_open, is_set(request, "blobs"))
        return json_answer(described, {COMMIT_HEADER: entry.snapshot.commit})

    async def _list_folder(self, request: web.Request, entry: Entry) -> web.Response:
        folder = request.match_info["folder"].strip("/")
        items = hub_models.tree(entry, folder, is_set(request, "recursive"), is_set(request, "expand"))
        if items is None:
            headers = {COMMIT_HEADER: entry.snapshot.commit}
            raise Refused(404, f"{entry.revision.repo_id} has no folder {folder}", ENTRY_NOT_FOUND, headers)
        page, link = cut_to_page(request, items)
        return json_answer(page, {COMMIT_HEADER: entry.snapshot.commit, **link})

    async def _describe_paths(self, request: web.Request, entry: Entry) -> web.Response:
        asked, expand = paths_in_body(request.content_type, await read_body(request))
        return json_answer(hub_models.paths(entry, asked, expand), {COMMIT_HEADER: entry.snapshot.commit})

    async def _list_commits(self, request: web.Request, entry: Entry) -> web.Response:
        return json_answer(hub_models.commits(entry))

    async def _list_refs(self, request: web.Request, entry: Entry) -> web.Response:
        entries = (await self._current_view(request)).by_repo.get(entry.revision.repo_id, (entry,))
        return json_answer(hub_models.refs(entries))

    async def _check_auth(self, request: web.Request, entry: Entry) -> web.Response:
        return json_answer({})

    async def _list_repos(self, request: web.Request) -> web.Response:
        """List the store's repos that the request may see; the upstream's are not among them."""
        view, sees, query = await self._current_view(request), visible(request), request.query
        author, search = query.get("author"), query.get("search", "").lower()
        wanted = {tag for value in query.getall("filter", []) for tag in value.split(",") if tag}
        describe = hub_models.model if is_set(request, "full", "cardData") or "expand" in query else hub_models.listed
        unmet = is_set(request, "gated") or any(name in query for name in _UNMET_SETTINGS)
        repos = []
        for repo_id, entries in () if unmet else view.by_repo.items():
            namespace, last = repo_id.partition("/")[0], last_moved(entries)
            if not sees(namespace) or author not in (None, namespace) or search not in repo_id.lower():
                continue
            if wanted <= set(hub_models.tags(last)):
                repos.append(describe(last, entries, not self._access.is_open))
        sort = query.get("sort")
        if sort in ("lastModified", "createdAt"):
            repos.sort(key=lambda repo: str(repo[sort]), reverse=query.get("direction", "-1") == "-1")
        page, link = cut_to_page(request, repos)
        return json_answer(page, link)

    async def _answer_whoami(self, request: web.Request) -> web.Response:
        name = request.get(TOKEN_NAME)
        if name is None:
            raise Refused(401, "this gateway has no tokens: everybody on this machine may read")
        auth = {"type": "access_token", "accessToken": {"displayName": name, "role": "read"}}
        return json_answer({"type": "user", "name": name, "fullname": name, "orgs": [], "auth": auth})

    # --- what is not answered ---

    async def _refuse_get(self, request: web.Request, entry: Entry) -> NoReturn:
        raise Refused(405, "paths-info is asked with POST", headers={"Allow": "POST"})

    async def _refuse_action(self, request: web.Request, entry: Entry) -> NoReturn:
        action = request.match_info["action"]
        raise Refused(404, f"there is no route {action!r} here; {_ONLY_READS}", ENTRY_NOT_FOUND)

    async def _refuse_method(self, request: web.Request) -> NoReturn:
        raise Refused(405, _ONLY_READS, headers={"Allow": "GET, HEAD"})


def _no_route() -> Refused:
    return Refused(404, "there is no such route here", ENTRY_NOT_FOUND)


def _damage_refusal(repo_id: str, revision: str, passes: bool) -> Refused:
    if passes:
        message = f"{repo_id}: {revision} cannot be read from the store at the moment; try again later"
        return Refused(503, message, headers={"Retry-After": "5"})
    return Refused(409, f"{repo_id}: what the store has of {revision} is damaged; publish it again")
