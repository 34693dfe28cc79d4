"""The pages' style sheet, script and icon: their names hold their hash, so a browser may keep them for ever."""

import hashlib
from dataclasses import dataclass
from functools import cache
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


@cache
def style_sheet() -> Asset:
    """Return the report's style and what the pages add."""
    return _asset("pages", "css", "text/css", CSS + (_HERE / "catalogue.css").read_text(encoding="utf-8"))


@cache
def script() -> Asset:
    """Return the report's script and what the pages add."""
    return _asset("pages", "js", "text/javascript", SCRIPT + (_HERE / "catalogue.js").read_text(encoding="utf-8"))


@cache
def icon() -> Asset:
    """Return the icon: a little heat map."""
    cells = "".join(
        f'<rect x="{2 + 7 * x}" y="{2 + 7 * y}" width="6" height="6" fill="{colour}"/>'
        for y, row in enumerate((("#00224e", "#7d7c78"), ("#bcae6c", "#fee838")))
        for x, colour in enumerate(row)
    )
    return _asset(
        "icon", "svg", "image/svg+xml", f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 17 17">{cells}</svg>'
    )


def assets() -> dict[str, Asset]:
    """Return all of them by name."""
    return {asset.name: asset for asset in (style_sheet(), script(), icon())}


def _asset(stem: str, ending: str, type_: str, text: str) -> Asset:
    content = text.encode()
    return Asset(f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.{ending}", type_, content)
