"""A gateway in a thread of this process, artifacts to serve, and plain requests."""

import asyncio
import hashlib
import http.client
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from eva_dist.gateway.app import make_app
from eva_dist.gateway.server import serving
from eva_dist.store.snapshot import Snapshot, read_snapshot
from eva_dist.store.store import Store

FILES: dict[str, bytes] = {
    "README.md": b"# card\n",
    "adapter_config.json": b'{"r": 4}\n',
    "big.bin": bytes(range(256)) * (11 << 10),  # 2.75 MB: more than a window, and more than what is read in one
    "empty.txt": b"",
    "plots/deep/own.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "plots/ranks.png": b"png",
    "with blank, ü & 100%.txt": b"odd\n",
}


def put(store: Store, repo_id: str, revision: str, files: Mapping[str, bytes], **facts: Any) -> Snapshot:
    """Publish an artifact with these files."""
    described = {path: {"sha256": sha256(content), "size": len(content)} for path, content in files.items()}
    manifest = {"fingerprint": sha256(json.dumps([described, facts]).encode()), "files": described, **facts}
    with tempfile.TemporaryDirectory() as name:
        for path, content in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / path).write_bytes(content)
        store.publish_folder(Path(name), repo_id, revision)
    return read_snapshot(json.dumps(manifest).encode())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def running(app: web.Application, **options: Any) -> Iterator[int]:
    """Serve an application on a thread; gives the port."""
    ready, ports, loops = threading.Event(), [], []

    async def serve() -> None:
        stop = asyncio.Event()
        async with serving(app, "127.0.0.1", 0, **options) as port:
            ports.append(port)
            loops.append((asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield ports[0]
    finally:
        loops[0][0].call_soon_threadsafe(loops[0][1].set)
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def gateway(store: Store, **options: Any) -> Iterator[str]:
    """Serve a store; gives the endpoint."""
    with running(make_app(store, max_age_s=0.0, **options)) as port:
        yield f"http://127.0.0.1:{port}"


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes = field(repr=False)

    @property
    def code(self) -> str | None:
        return self.headers.get("X-Error-Code")

    def json(self) -> Any:
        return json.loads(self.body)


def ask(endpoint: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Got:
    """Send one request, its path to the byte as given."""
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=20)
    try:
        connection.request(method, path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return Got(response.status, response.headers, response.read())
    finally:
        connection.close()
