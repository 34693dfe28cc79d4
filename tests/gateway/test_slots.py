"""Clients that stand still in the middle of downloads: whom they cost what."""

import contextlib
import secrets
import socket
from collections.abc import Iterator

import pytest
from aiohttp import web

from eva_dist.gateway import downloads, limits
from eva_dist.gateway.access import Access, new_token
from eva_dist.gateway.upstream import Upstream
from eva_dist.store.store import Store
from tests.gateway.conftest import FIRST, REPO
from tests.gateway.serving import ask, gateway, put, running

LARGE = bytes(range(256)) * (96 << 10)  # 24 MB: more than the system's buffers of a connection
URL = f"/{REPO}/resolve/{FIRST}/large.bin"
ANN, BOB = (new_token(name, ["*"]) for name in ("ann", "bob"))


@pytest.fixture
def memory() -> Store:
    store = Store(f"memory://{secrets.token_hex(4)}")
    put(store, REPO, FIRST, {"large.bin": LARGE})
    return store


@pytest.fixture
def access(tmp_path) -> Access:
    (tmp_path / "tokens").write_text(f"{ANN[1].line()}\n{BOB[1].line()}\n")
    return Access(tmp_path / "tokens")


def bearer(of: tuple[str, object]) -> dict[str, str]:
    return {"Authorization": f"Bearer {of[0]}"}


@contextlib.contextmanager
def stalled(endpoint: str, path: str, number: int, **headers: str) -> Iterator[None]:
    """Have so many clients take the first bytes of a file, and no more."""
    host, port = endpoint.removeprefix("http://").split(":")
    given = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(20)
            client.connect((host, int(port)))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{given}\r\n".encode())
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        yield


def test_clients_that_stand_still_keep_nobody_from_downloading(memory, monkeypatch):
    monkeypatch.setattr(downloads, "_FETCHES_AT_ONCE", 2)
    with gateway(memory) as endpoint, stalled(endpoint, URL, 5):
        assert ask(endpoint, URL).body == LARGE


def test_one_client_has_so_many_downloads_and_others_have_theirs(memory, access, monkeypatch):
    monkeypatch.setattr(limits, "_MOST_OF_ONE", 3)
    monkeypatch.setattr(limits, "WAIT_S", 0.05)
    with gateway(memory, access=access) as endpoint, stalled(endpoint, URL, 3, **bearer(ANN)):
        refused = ask(endpoint, URL, **bearer(ANN))
        assert refused.status == 503 and int(refused.headers["Retry-After"]) > 0 and b"3 downloads" in refused.body
        assert ask(endpoint, f"/api/models/{REPO}", **bearer(ANN)).status == 200
        assert ask(endpoint, URL, **bearer(BOB)).body == LARGE


def test_a_download_that_ends_makes_room(memory, monkeypatch):
    monkeypatch.setattr(limits, "_MOST_OF_ONE", 1)
    with gateway(memory) as endpoint:
        assert [len(ask(endpoint, URL).body) for _ in range(3)] == [len(LARGE)] * 3


def test_a_store_that_hangs_is_not_waited_for_by_all(memory, monkeypatch):
    monkeypatch.setattr(downloads, "_FETCHES_AT_ONCE", 0)  # as if all of them hung
    monkeypatch.setattr(limits, "WAIT_S", 0.05)
    with gateway(memory) as endpoint:
        refused = ask(endpoint, URL)
        assert refused.status == 503 and refused.headers["Retry-After"]


def test_what_stands_still_on_the_way_from_the_upstream_is_the_clients_own(store, access, monkeypatch):
    async def large(request: web.Request) -> web.Response:
        return web.Response(body=LARGE)

    app = web.Application()
    app.router.add_get("/{path:.*}", large)
    monkeypatch.setattr(limits, "_MOST_OF_ONE", 3)
    monkeypatch.setattr(limits, "WAIT_S", 0.05)
    path = "/org/base/resolve/main/large.bin"
    with running(app) as port, gateway(store, upstream=Upstream(f"http://127.0.0.1:{port}"), access=access) as endpoint:
        with stalled(endpoint, path, 3, **bearer(ANN)):
            assert ask(endpoint, path, **bearer(ANN)).status == 503
            assert ask(endpoint, path, **bearer(BOB)).body == LARGE
