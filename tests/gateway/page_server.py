"""The gateway on a port of this machine, in a thread, for tests that speak HTTP to it."""

import asyncio
import gzip
import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser

from aiohttp import web

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Served:
    """An application that answers at `url` between `with` and its end."""

    def __init__(self, make: Callable[[], web.Application]) -> None:
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Served":
        self._thread.start()
        self.port = self._do(self._start())
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> int:
        self._runner = web.AppRunner(self._make(), access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return self._runner.addresses[0][1]

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def get(self, path: str, **headers: str) -> "Answer":
        """Ask once; redirects are not followed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers={key.replace("_", "-"): value for key, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def page(self, path: str) -> "Page":
        """Return the page at a path, which must be there."""
        answer = self.get(path)
        assert answer.status == 200, (path, answer.status, answer.body[:500])
        return Page(answer.text)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        packed = self.headers.get("Content-Encoding") == "gzip"
        return (gzip.decompress(self.body) if packed else self.body).decode()


class Page(HTMLParser):
    """Every element with its attributes and text; closing tags must match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source, self.open, self.elements, self.texts = text, [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag, **attributes):
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]

    def links(self, start="/artifact/"):
        """Where links lead to, each once, in their order."""
        return list(dict.fromkeys(a["href"] for a in self.all("a") if a.get("href", "").startswith(start)))

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())
