"""The style sheet and the script of report and catalogue; a page needs nothing of the script.

It adds hints to heat maps, sorting to tables, and copying to code.
"""

from pathlib import Path

from eva_dist.render.colours import AMOUNT, DIFFERENCE

_HERE = Path(__file__).parent
_BARS = "".join(
    f".bar.{palette.class_} {{ background: linear-gradient(to right, {', '.join(palette.stops)}); }}\n"
    for palette in (AMOUNT, DIFFERENCE)
)
"""The keys of the heat maps' colours: the stops are those that the maps are drawn with."""

CSS = _BARS + (_HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (_HERE / "page.js").read_text(encoding="utf-8")
