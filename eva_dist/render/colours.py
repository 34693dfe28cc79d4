"""Colours that colour-blind readers can tell apart: cividis for amounts, Okabe-Ito (by CSS class) for kinds."""

from dataclasses import dataclass

LEVELS = 32
"""How many colours a heat map tells apart."""

KINDS = 7
"""How many classes `c0`, `c1`, ... there are; `style.py` gives them Okabe-Ito's colours, for light and dark."""


@dataclass(frozen=True)
class Palette:
    """Colours from the lowest value to the highest, evenly spaced; `class_` is that of their bar in a legend."""

    stops: tuple[str, ...]
    class_: str

    def colour(self, share: float) -> str:
        """Return the colour of a share in 0..1, between the two steps it lies between."""
        at = min(max(share, 0.0), 1.0) * (len(self.stops) - 1)
        below = min(int(at), len(self.stops) - 2)
        ends = [_rgb_channels(colour) for colour in self.stops[below : below + 2]]
        return "#" + "".join(f"{round(a + (b - a) * (at - below)):02x}" for a, b in zip(*ends, strict=True))

    def wants_dark_ink(self, share: float) -> bool:
        """Tell whether text on the colour of a share is read better in black than in white (WCAG's luminance)."""
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 3295 for c in _rgb_channels(self.colour(share))]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179


AMOUNT = Palette(
    (
        *("#00224e", "#002e6a", "#1a386f", "#32436d", "#434e6c", "#535a6d", "#61656f", "#6f7073", "#7d7c78"),
        *("#8c8878", "#9b9476", "#aba072", "#bcae6c", "#cdbb63", "#dec958", "#f0d846", "#fee838"),
    ),
    "amount",
)
"""Seventeen even steps of matplotlib's cividis."""
DIFFERENCE = Palette(("#0b4f8a", "#5b9bd0", "#eceef1", "#e59a55", "#93430a"), "difference")
"""Blue where less, orange where more, nearly white where equal."""


def _rgb_channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
