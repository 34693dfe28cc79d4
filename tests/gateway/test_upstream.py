"""What the store does not have comes from another Hub: here a small one with a CDN on another port."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from eva_dist.errors import ConfigError
from eva_dist.gateway.access import Access, new_token
from eva_dist.gateway.app import make_app
from eva_dist.gateway.upstream import Upstream, upstream_of
from tests.gateway.conftest import FIRST, REPO
from tests.gateway.serving import ask, gateway, put, running, sha256

COMMIT = "c" * 40
WEIGHTS = bytes(range(256)) * (4 << 10)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}
HEADERS = {"X-Repo-Commit": COMMIT}


@dataclass
class OtherHub:
    """A Hub with one repo, and what it and its CDN were asked."""

    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    cdn: str = ""

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/api/models/{ns}/{name}", self.info)
        app.router.add_get("/api/models/{ns}/{name}/revision/{rev}", self.info)
        app.router.add_get("/api/models/{ns}/{name}/tree/{rev}", self.tree)
        app.router.add_get("/{ns}/{name}/resolve/{rev}/{path}", self.resolve)
        app.router.add_get("/moved/{path}", self.moved)
        return app

    def cdn_app(self) -> web.Application:
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/blob", self.blob)
        return app

    @web.middleware
    async def _note(self, request: web.Request, handler) -> web.StreamResponse:
        self.asked.append((request.method, request.path, request.headers.get("Authorization")))
        assert "Cookie" not in request.headers
        return await handler(request)

    async def info(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != "base":
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound", "Set-Cookie": "a=b"})
        return web.json_response({"id": "org/base", "sha": COMMIT, "siblings": []}, headers={"Set-Cookie": "a=b"})

    async def tree(self, request: web.Request) -> web.Response:
        """Two pages, with hashes of Xet."""
        name = list(FILES)[int(request.query.get("cursor", 0))]
        item = {"type": "file", "path": name, "size": len(FILES[name]), "oid": "1" * 40, "xetHash": "f" * 64}
        item["lfs"] = {"oid": sha256(FILES[name]), "size": len(FILES[name]), "pointerSize": 100}
        link = f'<{request.url.origin()}{request.path}?cursor=1&recursive=true>; rel="next"'
        return web.json_response([item], headers={"Link": link} if name == "config.json" else {})

    async def resolve(self, request: web.Request) -> web.Response:
        name = request.match_info["path"]
        if request.match_info["name"] != "base":
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if name == "config.json":
            return web.Response(status=307, headers={"Location": "/moved/config.json", **HEADERS})
        if name != "model.safetensors":
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound", **HEADERS})
        linked = {"X-Linked-Size": str(len(WEIGHTS)), "X-Linked-Etag": f'"{sha256(WEIGHTS)}"', "X-Xet-Hash": "f" * 64}
        return web.Response(status=302, headers={"Location": f"{self.cdn}/blob", **linked, **HEADERS})

    async def moved(self, request: web.Request) -> web.Response:
        return web.Response(body=b"{}", headers={"ETag": '"conf"', **HEADERS})

    async def blob(self, request: web.Request) -> web.Response:
        part = request.http_range
        body = WEIGHTS[part]
        start = part.start or 0
        ranged = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(WEIGHTS)}"}
        return web.Response(
            status=206 if "Range" in request.headers else 200,
            body=body,
            headers={"ETag": '"cdn"', "Content-Type": "text/html", **(ranged if "Range" in request.headers else {})},
        )


@pytest.fixture
def other() -> Iterator[tuple[OtherHub, str]]:
    hub = OtherHub()
    with running(hub.app()) as port, running(hub.cdn_app()) as cdn_port:
        hub.cdn = f"http://127.0.0.1:{cdn_port}"
        yield hub, f"http://127.0.0.1:{port}"


def test_base_models_come_through_the_proxy(store, other, tmp_path):
    hub, url = other
    put(store, REPO, FIRST, {"a.txt": b"a"})
    with gateway(store, upstream=Upstream(url, token="up")) as endpoint:
        ask_for = {"endpoint": endpoint, "cache_dir": tmp_path, "token": "hf_of-the-client"}
        folder = Path(snapshot_download("org/base", **ask_for))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES and folder.name == COMMIT
        assert Path(hf_hub_download(REPO, "a.txt", **ask_for)).read_bytes() == b"a"
        with pytest.raises(EntryNotFoundError):
            hf_hub_download("org/base", "none.json", **ask_for)
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("org/none", "x", **ask_for)
        assert HfApi(endpoint=endpoint, token=False).model_info("org/base").sha == COMMIT
    # the client's token is never sent on; the upstream's own goes to the upstream, not to its CDN
    assert {given for _, path, given in hub.asked if path == "/blob"} == {None}
    assert {given for _, path, given in hub.asked if path != "/blob"} == {"Bearer up"}
    assert not [path for _, path, _ in hub.asked if "team" in path]


def test_head_and_ranges_keep_their_meaning(store, other):
    hub, url = other
    path = "/org/base/resolve/main/model.safetensors"
    with gateway(store, upstream=Upstream(url)) as endpoint:
        head = ask(endpoint, path, "HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(WEIGHTS)))
        assert head.headers["X-Linked-Etag"] == f'"{sha256(WEIGHTS)}"' and head.headers["X-Repo-Commit"] == COMMIT
        assert "Location" not in head.headers and "X-Xet-Hash" not in head.headers
        assert "/blob" not in [path for _, path, _ in hub.asked]
        part = ask(endpoint, path, Range="bytes=1000-1999")
        assert (part.status, part.body) == (206, WEIGHTS[1000:2000])
        assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(WEIGHTS)}"
        assert part.headers["X-Repo-Commit"] == COMMIT
        assert part.headers["Content-Disposition"].startswith("attachment") and "sandbox" in str(part.headers)
        info = ask(endpoint, "/api/models/org/base")
        assert info.json()["sha"] == COMMIT and "Set-Cookie" not in info.headers
        tree = ask(endpoint, "/api/models/org/base/tree/main?recursive=true")
        assert "xetHash" not in tree.json()[0] and tree.headers["Link"].startswith(f"<{endpoint}/api/models/org/base/")


@pytest.mark.parametrize("mode", ["proxy", "redirect"])
def test_a_url_that_means_nothing_shows_the_upstream_no_name_of_ours(store, other, mode):
    hub, url = other
    put(store, REPO, FIRST, {"a.txt": b"a"})
    with gateway(store, upstream=Upstream(url, mode)) as endpoint:
        for path in (f"/{REPO}/resolve/{FIRST}", f"/api/datasets/{REPO}", f"/{REPO}/x/y", "/api/models/team%2Fname"):
            got = ask(endpoint, path)
            assert (got.status, got.code) == (404, "RepoNotFound") and "Location" not in got.headers, path
    assert hub.asked == []


@pytest.mark.parametrize("token", [None, "up"])
def test_the_operators_netrc_is_not_sent(store, other, tmp_path, monkeypatch, token):
    hub, url = other
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login operator password secret\ndefault login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with gateway(store, upstream=Upstream(url, token=token)) as endpoint:
        assert ask(endpoint, "/org/base/resolve/main/model.safetensors").body == WEIGHTS
        assert ask(endpoint, "/api/models/org/base").status == 200
    own = f"Bearer {token}" if token else None
    assert [(path, given) for _, path, given in hub.asked] == [
        ("/org/base/resolve/main/model.safetensors", own),
        ("/blob", None),  # where a redirect led
        ("/api/models/org/base", own),
    ]


def test_the_environments_proxy_is_used(store, monkeypatch):
    asked = []

    async def proxy(request: web.Request) -> web.Response:
        asked.append((request.raw_path, request.headers.get("Proxy-Authorization")))
        return web.Response(body=b"by the proxy")

    app = web.Application()
    app.router.add_get("/{path:.*}", proxy)
    for name in ("HTTP_PROXY", "NO_PROXY", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    with running(app) as port, gateway(store, upstream=Upstream("http://localhost:1")) as endpoint:
        monkeypatch.setenv("http_proxy", f"http://me:pass@127.0.0.1:{port}")
        assert ask(endpoint, "/org/base/resolve/main/a").body == b"by the proxy"
        monkeypatch.setenv("no_proxy", "localhost")
        assert ask(endpoint, "/org/base/resolve/main/a").status == 502  # nobody listens there
    assert asked == [("http://localhost:1/org/base/resolve/main/a", "Basic bWU6cGFzcw==")]


def test_a_redirect_sends_clients_there(store, other):
    _, url = other
    put(store, REPO, FIRST, {"a.txt": b"a"})
    with gateway(store, upstream=Upstream(url, "redirect")) as endpoint:
        for path in (
            "/api/models/org/base?blobs=true",
            "/org/base/resolve/refs%2Fpr%2F1/a%20b%23.txt",
            "/gpt2/resolve/x/y",
        ):
            got = ask(endpoint, path)
            assert (got.status, got.headers["Location"]) == (307, url + path)
        assert ask(endpoint, f"/{REPO}/resolve/{FIRST}/a.txt").body == b"a"
        assert ask(endpoint, f"/{REPO}/resolve/{FIRST}/none").code == "EntryNotFound"


def test_pages_of_repos_that_are_not_ours_are_the_upstreams(store, other):
    _, url = other
    put(store, REPO, FIRST, {"a.txt": b"a"})
    with gateway(store, upstream=Upstream(url)) as endpoint:
        for page in ("/org/base", "/org/base/tree/main", "/datasets/org/data"):
            got = ask(endpoint, page)
            assert (got.status, got.headers.get("Location")) == (307, url + page)


PAGES = ("/org/base", "/org/base/", "/org/base/tree/main", "/org/base/blob/main/a", "/datasets/org/data")


def test_nobody_with_a_token_is_redirected(store, other, tmp_path):
    """Clients bring their token along."""
    hub, url = other
    secret, kept = new_token("ann", ["*"])
    (tmp_path / "tokens").write_text(kept.line())
    with gateway(store, upstream=Upstream(url), access=Access(tmp_path / "tokens")) as endpoint:
        for page in (*PAGES, "/org/base/x/y", "/org/base/info/refs?service=git-upload-pack"):
            got = ask(endpoint, page, Authorization=f"Bearer {secret}")
            assert got.status == 404 and "Location" not in got.headers, page
    assert hub.asked == []


def test_only_pages_are_redirected(store, other):
    _, url = other
    with gateway(store, upstream=Upstream(url)) as endpoint:
        assert [ask(endpoint, page).status for page in (*PAGES, "/org/base/x/y")] == [307] * 5 + [404]
        assert ask(endpoint, "/org/base/x/paths-info/y", "POST", b"paths=a").status == 404
        assert ask(endpoint, "/org/base/info/refs?service=git-upload-pack").status == 404


def test_an_upstream_that_is_down_is_a_502(store):
    with running(web.Application()) as port:
        pass
    with gateway(store, upstream=Upstream(f"http://127.0.0.1:{port}")) as endpoint:
        got = ask(endpoint, "/org/base/resolve/main/config.json")
        assert got.status == 502 and "upstream" in got.json()["error"]


def test_an_upstream_that_breaks_off_leaves_a_download_that_is_too_short(store):
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000000"})
        await response.prepare(request)
        await response.write(b"x" * 500_000)
        request.transport.close()
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", half)
    with running(app) as port, gateway(store, upstream=Upstream(f"http://127.0.0.1:{port}")) as endpoint:
        with pytest.raises(Exception, match="IncompleteRead"):
            ask(endpoint, "/org/base/resolve/main/x")
        assert ask(endpoint, "/api/models/org/base/tree/main").status == 502


def test_a_gateway_that_is_its_own_upstream_stops(store):
    app = web.Application()
    with running(app) as port:
        pass
    upstream = Upstream(f"http://127.0.0.1:{port}")
    with gateway(store, upstream=upstream) as endpoint:
        got = ask(endpoint, "/api/models/org/base", X_Eva_Dist_Hops="5")
        assert got.status == 508


def test_private_names_are_never_asked_upstream(store, other, tmp_path):
    hub, url = other
    put(store, "secret/plan", "v1", {"a.txt": b"a"})
    secret, kept = new_token("ann", ["team"])
    future = new_token("bob", ["planned"])[1]
    (tmp_path / "tokens").write_text(f"{kept.line()}\n{future.line()}\n")
    bearer = {"Authorization": f"Bearer {secret}"}
    with gateway(store, upstream=Upstream(url), access=Access(tmp_path / "tokens")) as endpoint:
        for repo in ("secret/plan", "secret/other", "planned/thing"):
            for path in (f"/api/models/{repo}", f"/{repo}/resolve/v1/a.txt", f"/{repo}", f"/api/datasets/{repo}"):
                assert ask(endpoint, path).status == 401
                got = ask(endpoint, path, **bearer)
                assert got.status == 404 and "Location" not in got.headers, path
        assert hub.asked == []
        assert ask(endpoint, "/api/models/org/base", **bearer).json()["sha"] == COMMIT
        assert ask(endpoint, "/api/models/team/new", **bearer).code == "RepoNotFound"  # of a namespace that it sees
    assert [path for _, path, _ in hub.asked] == ["/api/models/org/base"]
    assert all(given is None for _, _, given in hub.asked)


@pytest.mark.parametrize("mode", ["proxy", "redirect"])
def test_what_our_namespace_lacks_is_never_a_strangers(store, other, mode):
    """Who registers our namespace at the upstream must not serve what was removed here, or is mistyped."""
    hub, url = other
    put(store, "org/adapter", "v1", {"a.txt": b"a"})  # and the upstream has org/base
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    with gateway(store, upstream=Upstream(url, mode)) as endpoint:
        assert ask(endpoint, "/org/adapter/resolve/v1/a.txt").body == b"a"
        commit = ask(endpoint, "/api/models/org/adapter").json()["sha"]
        store.remove("org/adapter", "v1")  # the last one: the namespace is empty now
        for repo in ("org/adapter", "org/base", "ORG/base"):
            paths = [f"/api/models/{repo}", f"/api/models/{repo}/tree/main", f"/{repo}/resolve/main/model.safetensors"]
            for path in (*paths, f"/{repo}", f"/{repo}/tree/main", f"/{repo}/x", f"/api/datasets/{repo}"):
                got = ask(endpoint, path)
                assert got.status == 404 and "Location" not in got.headers, path
            assert ask(endpoint, f"/api/models/{repo}/paths-info/main", "POST", b"paths=a", **form).status == 404
        assert ask(endpoint, f"/org/adapter/resolve/{commit}/a.txt").body == b"a"  # who has begun goes on
        assert ask(endpoint, f"/api/models/org/adapter/revision/{commit}").json()["sha"] == commit
    assert hub.asked == []


@pytest.mark.parametrize(
    "url", ["", "huggingface.co", "ftp://x", "http://", "http://x?a=b", "http://u:p@x", "http://\n"]
)
def test_upstreams_that_are_none(url):
    with pytest.raises(ConfigError, match="must be http"):
        Upstream(url)


def test_a_gateway_with_tokens_does_not_redirect():
    with pytest.raises(ConfigError, match="clients send their token along"):
        upstream_of("https://huggingface.co", "redirect", None, needs_tokens=True)
    assert upstream_of("https://huggingface.co", "proxy", None, needs_tokens=True) is not None
    assert upstream_of(None, "redirect", None, needs_tokens=True) is None


def test_an_application_without_upstream_has_no_such_repo(store):
    with running(make_app(store)) as port:
        got = ask(f"http://127.0.0.1:{port}", "/api/models/gpt2")
        assert (got.status, got.code) == (404, "RepoNotFound") and json.loads(got.body)["error"]


def test_models_without_a_namespace_are_the_upstreams(store):
    async def echo(request: web.Request) -> web.Response:
        return web.json_response({"path": request.path, "body": (await request.read()).decode()})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    kind = "application/x-www-form-urlencoded"
    with running(app) as port, gateway(store, upstream=Upstream(f"http://127.0.0.1:{port}")) as endpoint:
        for path in ("/api/models/gpt2", "/api/models/gpt2/tree/main", "/gpt2/resolve/main/config.json"):
            assert ask(endpoint, path).json()["path"] == path
        for path in ("/api/models/gpt2/paths-info/main", "/api/models/org/base/paths-info/main"):
            got = ask(endpoint, path, "POST", b"paths=a", Content_Type=kind).json()
            assert got == {"path": path, "body": "paths=a"}
        assert ask(endpoint, "/api/models/org/base/xet-read-token/main").code == "RepoNotFound"
        assert ask(endpoint, "/api/models/gpt2", "POST", b"x").status == 405
