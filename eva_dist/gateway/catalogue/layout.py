"""What all pages have in common: the document around them, where they lie, and pieces they share."""

from collections.abc import Sequence
from datetime import datetime
from urllib.parse import quote, urlencode

import eva_dist
from eva_dist.artifact.reading import shown
from eva_dist.artifact.summary import DONE, NOT_CONVERGED, Summary
from eva_dist.gateway.catalogue.assets import icon, script, style_sheet
from eva_dist.gateway.catalogue.cache import Listed
from eva_dist.render.heat_map import HATCH
from eva_dist.render.markup import element, said
from eva_dist.render.words import NONE

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def document(title: str, *main: str, trail: Sequence[tuple[str, str | None]] = (), lead: str = "") -> str:
    """Return a page: `title` (text) is its heading, `lead` stands under it, `trail` says (text, URL) where it lies."""
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        element("title", said(f"{title} · eva_dist")),
        f'<link rel="icon" href="{icon().url}" type="image/svg+xml">',
        f'<link rel="stylesheet" href="{style_sheet().url}">',
        f'<script src="{script().url}" defer></script>',
    ]
    body = [
        element("a", "Skip to the content", href="#content", class_="skip"),
        HATCH,
        element("header", _trail(trail), class_="bar-top"),
        element("main", element("h1", said(title)), lead, *main, id="content", tabindex="-1"),
        element(
            "footer", element("p", said(f"eva_dist {eva_dist.__version__}: initialisations for LoRA, computed once."))
        ),
    ]
    return f'<!doctype html>\n<html lang="en">{element("head", *head)}{element("body", *body)}</html>\n'


def _trail(trail: Sequence[tuple[str, str | None]]) -> str:
    mark = f'<img src="{icon().url}" alt="" width="20" height="20">'
    home = element("a", mark, "eva_dist", href="/", class_="brand", aria_current=None if trail else "page")
    items = [element("li", home)]
    for text, url in trail:
        step = element("a", said(text), href=url) if url else element("span", said(text), aria_current="page")
        items.append(element("li", step))
    return element("nav", element("ol", *items, class_="trail"), aria_label="Where this page lies")


def section(heading: str, *content: str, id_: str | None = None) -> str:
    """Return a part of a page under its heading (text)."""
    key = id_ or "".join(c if c.isalnum() else "-" for c in heading.lower()).strip("-")
    return element("section", element("h2", said(heading), id=key), *content, aria_labelledby=key)


def note(text: str) -> str:
    """Return a remark (text)."""
    return element("p", said(text), class_="note")


def warning(heading: str, *content: str) -> str:
    """Return a box that cannot be overlooked; content is markup."""
    return element("div", element("p", element("strong", said(heading))), *content, class_="warning", role="note")


def artifact_url(one: Listed) -> str:
    """Return where an artifact's page is."""
    return f"/artifact/{path(one.revision.repo_id)}/{path(one.revision.revision)}"


def compare_url(a: str, b: str | None = None) -> str:
    """Return where two artifacts stand side by side; both as `team/name@revision`."""
    return "/compare?" + urlencode({"a": a, **({"b": b} if b else {})}, safe="/@", errors="replace")


def path(text: str) -> str:
    """Return text as a part of a URL's path."""
    return quote(text, safe="/@", errors="replace")


def status(facts: Summary) -> str:
    """Return how the artifact ended, with how many layers converged where not all did."""
    told = shown(facts.status, 30).replace("_", " ")
    if facts.status == NOT_CONVERGED and facts.layers_converged is not None and facts.layers:
        told += f" {facts.layers_converged}/{facts.layers}"
    return element("span", said(told), class_="status" if facts.status == DONE else "status bad")


def day(when: datetime | None) -> str:
    """Return a date, with the time for who points at it."""
    if when is None:
        return NONE
    return element(
        "time", when.strftime("%Y-%m-%d"), datetime=when.isoformat(), title=when.strftime("%Y-%m-%d %H:%M UTC")
    )


def size(count: int) -> str:
    """Return bytes as people read them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * scale:
            return f"{count / scale:.3g}\u00a0{unit}"
    return f"{count}\u00a0B"


def pick_box(one: Listed, ticked: bool = False) -> str:
    """Return the box that picks an artifact for comparison; its form has the id `compare`."""
    name, checked = said(one.name), " checked" if ticked else ""
    return f'<input type="checkbox" name="pick" value="{name}"{checked} form="compare" aria-label="Compare {name}">'


def hidden(name: str, value: str, form: str | None = None) -> str:
    """Return what a form sends along; `form` is its id, if it is elsewhere."""
    of = "" if form is None else f' form="{said(form)}"'
    return f'<input type="hidden" name="{said(name)}" value="{said(value)}"{of}>'


def counted(count: int | None) -> str:
    """Return a whole number with its thousands set apart, or a dash."""
    return NONE if count is None else f"{count:,}"
