"""Clients that are slow, many, large or cunning."""

import contextlib
import gzip
import logging
import socket
import threading

import pytest

from eva_dist.gateway import downloads, limits, requests, server
from eva_dist.gateway.app import make_app
from tests.gateway.conftest import FIRST, REPO
from tests.gateway.serving import FILES, ask, gateway, put, running

URL = f"/{REPO}/resolve/{FIRST}/big.bin"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def endpoint(store):
    put(store, REPO, FIRST, FILES)
    with gateway(store) as url:
        yield url


def connect(endpoint: str, receive_bytes: int | None = None) -> socket.socket:
    host, port = endpoint.removeprefix("http://").split(":")
    client = socket.socket()
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(20)
    client.connect((host, int(port)))
    return client


def all_of(client: socket.socket) -> bytes:
    """Read until the gateway closes the connection, in whatever way."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(1 << 16):
            content += part
    return content


def test_no_path_leads_anywhere_else(endpoint, store, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (store.root / "secret").write_text("secret")
    ups = [
        "../",
        "..%2f",
        "%2e%2e/",
        "%2e%2e%2f",
        "..%5c",
        "%2e%2e%5c",
        "....//",
        "%252e%252e/",
        "..;/",
        "%c0%ae%c0%ae/",
    ]
    for up in ups:
        for depth in (1, 2, 3, 6):
            for start in (
                "/",
                f"/{REPO}/resolve/{FIRST}/",
                f"/{REPO}/resolve/",
                "/static/",
                "/artifact/",
                "/api/models/",
            ):
                got = ask(endpoint, f"{start}{up * depth}secret")
                assert 400 <= got.status < 500 and got.body != b"secret", (start, up)
    for odd in ("%00", "a%00b", "%0d%0aX-Evil:1", "%ff", "a\\b", "%2Fetc%2Fpasswd", "/etc/passwd", ".", "%2e"):
        for start in (f"/{REPO}/resolve/{FIRST}/", f"/{REPO}/resolve/{odd}/", f"/api/models/{odd}/", "/api/models/a/"):
            got = ask(endpoint, start + odd)
            assert 400 <= got.status < 500 and "X-Evil" not in got.headers, (start, odd)
    assert ask(endpoint, f"/{REPO}/resolve/{FIRST}/plots%2Franks.png").body == b"png"  # a slash that stays inside


def test_names_that_are_no_utf8_or_not_ascii_are_answered(endpoint):
    assert ask(endpoint, "/api/models/t%C3%A9am/n%C3%A4me").code == "RepoNotFound"
    got = ask(endpoint, f"/api/models/{REPO}/revision/%C3%A4%F0%9F%98%80")
    assert got.code == "RevisionNotFound" and got.headers["X-Error-Message"].isascii()
    for query in ("limit=x", "limit=-1", "cursor=99999999999999", "limit=%C2%B2"):
        assert ask(endpoint, f"/api/models?{query}").status == 400
    assert ask(endpoint, "/api/models?cursor=50").json() == []


def test_lists_come_in_pages(endpoint):
    tree = f"/api/models/{REPO}/tree/{FIRST}"
    seen, path = [], f"{tree}?recursive=true&limit=4"
    while path:
        got = ask(endpoint, path)
        seen += [one["path"] for one in got.json()]
        link = got.headers.get("Link", "")
        path = link.partition(">")[0].removeprefix(f"<{endpoint}") if link else ""
    assert seen == [one["path"] for one in ask(endpoint, f"{tree}?recursive=true").json()] and len(seen) == 10


def test_methods_that_write_are_refused(endpoint):
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        for path in (URL, f"/api/models/{REPO}", "/api/repos/create", f"/api/models/{REPO}/commit/main"):
            got = ask(endpoint, path, method)
            assert got.status == 405 and got.headers["Allow"] == "GET, HEAD" and b"only serves" in got.body


@pytest.mark.parametrize("what", ["path", "query", "header", "headers"])
def test_oversized_heads_are_refused(endpoint, what):
    head = {
        "path": f"GET /{'x' * 20_000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "query": f"GET /api/models?search={'x' * 20_000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "header": f"GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: {'x' * 20_000}\r\n\r\n",
        "headers": "GET / HTTP/1.1\r\nHost: localhost\r\n" + "".join(f"X-{i}: y\r\n" for i in range(2000)) + "\r\n",
    }[what]
    with connect(endpoint) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(head.encode())
        assert all_of(client).split(b" ")[1] in (b"400", b"414", b"431")
    assert ask(endpoint, "/healthz").status == 200


def test_bodies_are_limited(endpoint):
    path = f"/api/models/{REPO}/paths-info/{FIRST}"
    assert ask(endpoint, path, "POST", b"paths=" + b"x" * (2 << 20), Content_Type=FORM).status == 413
    assert ask(endpoint, path, "POST", b"&".join([b"paths=x"] * 5000), Content_Type=FORM).status == 400
    assert ask(endpoint, path, "POST", b'{"paths": ["big.bin"]}', Content_Type="application/json").json()[0]["size"]
    for bad in (b"", b"[]", b'{"paths": 1}', b'{"paths": [1]}', b"[" * 100_000, b"\xff"):
        got = ask(endpoint, path, "POST", bad, Content_Type="application/json")
        assert got.status == 400, bad[:20]
    assert ask(endpoint, path, "POST", b"\xff", Content_Type=FORM).status == 400
    assert ask(endpoint, path).status == 405


def test_a_body_that_does_not_come_is_not_waited_for(endpoint, monkeypatch):
    monkeypatch.setattr(requests, "_BODY_S", 0.05)
    with connect(endpoint) as client:
        client.sendall(f"POST /api/models/{REPO}/paths-info/{FIRST} HTTP/1.1\r\nHost: localhost\r\n".encode())
        client.sendall(b"Content-Length: 100\r\n\r\npaths=")
        assert all_of(client).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"])
def test_headers_that_never_end_are_not_waited_for(store, sent):
    with running(make_app(store), keep_alive_s=0.2) as port, connect(f"http://127.0.0.1:{port}") as client:
        client.sendall(sent)
        assert all_of(client) == b""


def test_a_client_that_reads_nothing_is_let_go(endpoint, monkeypatch, caplog):
    monkeypatch.setattr(limits, "STALL_S", 0.3)
    monkeypatch.setattr(downloads, "_SENDFILE_BYTES", 64 << 10)
    with connect(endpoint, receive_bytes=4096) as client:
        client.sendall(f"GET {URL} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert ask(endpoint, URL).body == FILES["big.bin"]  # others are served meanwhile
        logged = threading.Event()
        monkeypatch.setattr(downloads.log, "warning", lambda *given: logged.set())
        # It was sent less than the whole, if it is let go, unless the system's buffers took all of it.
        assert logged.wait(20)
        assert len(all_of(client)) < len(FILES["big.bin"])


def test_clients_that_leave_in_the_middle_are_no_errors(endpoint, caplog):
    for _ in range(5):
        with connect(endpoint, receive_bytes=4096) as client:
            client.sendall(f"GET {URL} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert ask(endpoint, URL).body == FILES["big.bin"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_is_no_http_fills_no_log(endpoint, caplog):
    heads = [
        b"nonsense\r\n\r\n",
        b"GET api HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)) + b"\r\n\r\n",
    ]
    for head in heads:
        with connect(endpoint) as client:
            client.sendall(head)
            assert b" 400 " in all_of(client)[:20]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_compressed_body_is_not_blown_up(endpoint):
    body = gzip.compress(b"paths=" + b"x" * (50 << 20))
    headers = {"Content-Type": FORM, "Content-Encoding": "gzip"}
    assert ask(endpoint, f"/api/models/{REPO}/paths-info/{FIRST}", "POST", body, **headers).status == 400


def test_more_connections_than_there_is_room_for_are_told_to_come_again(store, monkeypatch):
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 3)
    with gateway(store) as endpoint, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(endpoint)) for _ in range(3)]
        for client in clients:  # the gateway has taken each of them
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        with connect(endpoint) as fourth:
            assert all_of(fourth).startswith(b"HTTP/1.1 503 ")


def test_what_fails_inside_is_logged_and_not_shown(store, monkeypatch, caplog):
    monkeypatch.setattr(store, "revisions_and_broken", lambda: {}["a-secret-key"])
    with gateway(store) as endpoint:
        got = ask(endpoint, "/api/models")
        assert got.status == 500 and b"a-secret-key" not in got.body and got.json()["error"]
    assert "a-secret-key" in caplog.text


def test_the_access_log_has_no_tokens(store, caplog):
    put(store, REPO, FIRST, FILES)
    caplog.set_level(logging.INFO, logger="eva_dist.gateway.server")
    headers = {"Authorization": "Bearer eva_secret2", "User-Agent": "someone/1", "Range": "bytes=1-2"}
    with gateway(store) as endpoint:
        ask(endpoint, f"{URL}?token=eva_secret1", **headers)
    facts = next(record.facts for record in caplog.records if hasattr(record, "facts"))  # written after the answer
    assert (facts["method"], facts["path"], facts["status"], facts["bytes"]) == ("GET", URL, 206, "2")
    assert facts["agent"] == "someone/1" and "secret" not in str(facts) and "eva_secret" not in caplog.text
