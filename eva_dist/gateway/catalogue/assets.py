"""The pages' style sheet, script and icon: their names hold their hash, so a browser may keep them for ever."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from eva_dist.render.style import CSS, SCRIPT

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Asset:
    """A file under /static/."""

    name: str
    type: str
    content: bytes

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"/static/{self.name}"


def _make_asset(stem: str, ending: str, type_: str, text: str) -> Asset:
    content = text.encode()
    return Asset(f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.{ending}", type_, content)


_CELLS = "".join(
    f'<rect x="{2 + 7 * x}" y="{2 + 7 * y}" width="6" height="6" fill="{colour}"/>'
    for y, row in enumerate((("#00224e", "#7d7c78"), ("#bcae6c", "#fee838")))
    for x, colour in enumerate(row)
)
_ICON = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 17 17">{_CELLS}</svg>'
"""A little heat map."""
_ADDED = {ending: (_HERE / f"catalogue.{ending}").read_text(encoding="utf-8") for ending in ("css", "js")}
ASSETS = {
    "style_sheet": _make_asset("pages", "css", "text/css", CSS + _ADDED["css"]),
    "script": _make_asset("pages", "js", "text/javascript", SCRIPT + _ADDED["js"]),
    "icon": _make_asset("icon", "svg", "image/svg+xml", _ICON),
}
"""By what templates call them: the report's style and script, with what the pages add, and the icon."""
