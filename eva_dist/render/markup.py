"""SVG as markup: whatever comes from outside is escaped, be it a child or an attribute."""

import json
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape


def element(name: str, /, *children: str, **attributes: object) -> Markup:
    """Return an element; children that are no markup, and attributes, are escaped.

    `class_` is `class`, other underscores are hyphens; None leaves an attribute out, True gives it no value.
    """
    written = "".join(_write_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Markup:
    """Return pieces one after the other; those that are no markup are escaped."""
    return Markup("").join(children)


def _write_attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{escape(number(value) if isinstance(value, float) else value)}"'


def number(value: float) -> str:
    """Return a coordinate in as few characters as a hundredth of a pixel takes."""
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def svg(width: float, height: float, name: str, *children: str, **attributes: object) -> Markup:
    """Return a drawing that scales to the width it is given; `name` is what a screen reader says."""
    box = f"0 0 {number(width)} {number(height)}"
    return element("svg", *children, viewBox=box, role="img", aria_label=name, **attributes)


def data(value: Any) -> str:
    """Return JSON for an attribute."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
