"""HTML and SVG as text: whatever comes from outside goes through `said` or an attribute, and is escaped there."""

import html
import json
from collections.abc import Iterable
from typing import Any


def said(text: object) -> str:
    """Return text that is only text."""
    return html.escape(str(text), quote=True)


def element(name: str, /, *children: str, **attributes: object) -> str:
    """Return an element; children are markup, attributes are escaped.

    `class_` is `class`, other underscores are hyphens; None leaves an attribute out, True gives it no value.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    return f"<{name}{written}>{''.join(children)}</{name}>"


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{said(_number(value) if isinstance(value, float) else value)}"'


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def number(value: float) -> str:
    """Return a coordinate in as few characters as a hundredth of a pixel takes."""
    return _number(float(value))


def svg(width: float, height: float, name: str, *children: str, **attributes: object) -> str:
    """Return a drawing that scales to the width it is given; `name` is what a screen reader says."""
    box = f"0 0 {number(width)} {number(height)}"
    return element("svg", *children, viewBox=box, role="img", aria_label=name, **attributes)


def figure(caption: str, *children: str, **attributes: object) -> str:
    """Return drawings with their caption (text)."""
    return element("figure", *children, element("figcaption", said(caption)), **attributes)


def table(
    caption: str,
    head: Iterable[str],
    rows: Iterable[Iterable[str]],
    sort_keys: Iterable[Iterable[Any]] = (),
    class_: str = "",
) -> str:
    """Return a table that scrolls sideways; cells are markup, the first of each row is its heading.

    `sort_keys` are the values behind the cells, row by row: with them a reader can sort by a column. A cell whose
    text is its key does not say it twice.
    """
    keys = [list(line) for line in sort_keys]
    heads = "".join(element("th", cell, scope="col") for cell in head)
    body = []
    for at, row in enumerate(rows):
        first, *others = [(cell, _key(keys, at, column, cell)) for column, cell in enumerate(row)]
        cells = element("th", first[0], scope="row", data_v=first[1])
        body.append(element("tr", cells, *(element("td", cell, data_v=key) for cell, key in others)))
    parts = element("caption", said(caption)), element("thead", element("tr", heads)), element("tbody", *body)
    inner = element("table", *parts, class_=class_ or ("sortable" if keys else None))
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _key(keys: list[list[Any]], row: int, column: int, cell: str) -> str | None:
    if not keys:
        return None
    value = "" if keys[row][column] is None else str(keys[row][column])
    return None if said(value) == cell else value


def data(value: Any) -> str:
    """Return JSON for an attribute."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
