"""What all pages have in common: their templates, and where they lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from markupsafe import Markup

import eva_dist
from eva_dist.artifact.reading import plain, shown
from eva_dist.gateway.catalogue.assets import ASSETS
from eva_dist.render.templates import template_environment
from eva_dist.render.words import NONE, amount
from eva_dist.report.settings import whole_text

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def render_page(template: str, title: str, *, trail: Sequence[tuple[str, str | None]] = (), **values: Any) -> str:
    """Return a page: `title` is its heading, `trail` says (text, URL) where it lies."""
    return _ENVIRONMENT.get_template(template).render(values, title=title, trail=trail)


def render_fragment(template: str, **values: Any) -> Markup:
    """Return a piece of a page."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def compare_url(a: str, b: str | None = None) -> str:
    """Return where two artifacts stand side by side; both as `team/name@revision`."""
    return "/compare?" + urlencode({"a": a, **({"b": b} if b else {})}, safe="/@", errors="replace")


def url_path(text: str) -> str:
    """Return text as a part of a URL's path."""
    return quote(text, safe="/@", errors="replace")


def file_size(count: int) -> str:
    """Return bytes as people read them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * scale:
            return f"{count / scale:.3g}\u00a0{unit}"
    return f"{count}\u00a0B"


def _heading_id(heading: str) -> str:
    """Return what a link to a heading names it by."""
    return "".join(c if c.isalnum() else "-" for c in heading.lower()).strip("-")


_ENVIRONMENT = template_environment(Path(__file__).parent / "templates")
_ENVIRONMENT.globals |= {"version": eva_dist.__version__, "compare_url": compare_url, **ASSETS}
_ENVIRONMENT.filters |= {
    "shown": shown,
    "whole_text": whole_text,
    "plain": plain,
    "slug": _heading_id,
    "url_path": url_path,
    "file_size": file_size,
    "setting": lambda value: NONE if value is None else plain(value),
    "amount_or_dash": lambda value: NONE if value is None else amount(value),
}
