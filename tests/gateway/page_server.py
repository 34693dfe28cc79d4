"""Pages over HTTP, read as a browser would: every element, attribute and text."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser

from aiohttp import web

from tests.gateway.serving import ask, running

VOID = {"meta", "br", "img", "input", "link", "hr"}


@contextmanager
def served_pages(app: web.Application) -> Iterator["Served"]:
    """Serve an application that has pages."""
    with running(app) as port:
        yield Served(f"http://127.0.0.1:{port}")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        packed = self.headers.get("Content-Encoding") == "gzip"
        return (gzip.decompress(self.body) if packed else self.body).decode()


@dataclass(frozen=True)
class Served:
    """A server of pages at `url`."""

    url: str

    def get(self, path: str, **headers: str) -> Answer:
        """Ask once; redirects are not followed."""
        got = ask(self.url, path, **headers)
        return Answer(got.status, dict(got.headers), got.body)

    def page(self, path: str) -> "Page":
        """Return the page at a path, which must be there."""
        answer = self.get(path)
        assert answer.status == 200, (path, answer.status, answer.body[:500])
        return Page(answer.text)


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
