"""Colours that colour-blind readers can tell apart: cividis for amounts, Okabe-Ito (by CSS class) for kinds."""

CIVIDIS = (
    *("#00224e", "#002e6a", "#1a386f", "#32436d", "#434e6c", "#535a6d", "#61656f", "#6f7073", "#7d7c78"),
    *("#8c8878", "#9b9476", "#aba072", "#bcae6c", "#cdbb63", "#dec958", "#f0d846", "#fee838"),
)
"""Seventeen even steps of matplotlib's map."""

LEVELS = 32
"""How many colours a heat map tells apart."""

KINDS = 7
"""How many classes `c0`, `c1`, ... there are; `style.py` gives them Okabe-Ito's colours, for light and dark."""


def cividis(share: float) -> str:
    """Return the colour of a share in 0..1, between the two steps it lies between."""
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    below = min(int(at), len(CIVIDIS) - 2)
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in CIVIDIS[below : below + 2]]
    return "#" + "".join(f"{round(a + (b - a) * (at - below)):02x}" for a, b in zip(*ends, strict=True))


def ink_on(share: float) -> str:
    """Return the colour of text on the colour of a share."""
    return "#ffffff" if share < 0.55 else "#000000"
