"""Drawings of an artifact, or of two: ranks by kind and block, spectra, convergence; each has its numbers beside it."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eva_dist.artifact.layer_names import Place, kinds_in_order, places
from eva_dist.artifact.reading import plain, shown
from eva_dist.gateway.catalogue.detail import Detail, KindSpectrum
from eva_dist.render.colours import AMOUNT, DIFFERENCE, Palette
from eva_dist.render.curves import Curve, CurvePlot, draw_curves
from eva_dist.render.heat_map import Heat, draw_heat, scale
from eva_dist.render.markup import element, figure, said, table
from eva_dist.render.words import share

_MOST_PANELS = 24
_MOST_KINDS = 60
_MOST_CELLS = 700
_ROW = 22.0


@dataclass(frozen=True)
class Ends:
    """The ends of a map's colours."""

    low: float
    high: float


def rank_map(
    name: str,
    ranks: Mapping[str, float],
    ends: Ends,
    where: Mapping[str, Place],
    palette: Palette = AMOUNT,
    width: float = 720.0,
) -> str:
    """Return the map of a value by layer, a row a module kind and a column a block; empty if no layer is in a block."""
    inside = {layer: place for layer, place in where.items() if place.block is not None}
    kinds = kinds_in_order(inside)[:_MOST_KINDS]
    blocks = sorted({place.block for place in inside.values() if place.block is not None})
    if not kinds:
        return ""
    cells: dict[tuple[str, int], list[float]] = defaultdict(list)
    for layer, place in inside.items():
        if layer in ranks and place.block is not None:
            cells[place.kind, place.block].append(ranks[layer])
    words = [shown(kind, 40) for kind in kinds]
    left = min(14 + 6.1 * max(map(len, words)), 0.45 * width)
    cell = (width - left) / len(blocks)
    is_difference = palette is DIFFERENCE
    written = _signed if is_difference else lambda value: f"{value:.0f}"
    heat = Heat(
        name=name,
        grid=[[_mean(cells.get((kind, block), [])) for block in blocks] for kind in kinds],
        row_names=words,
        column_names=[str(block) for block in blocks],
        row_words=words,
        column_words=[f"block {block}" for block in blocks],
        low=ends.low,
        high=ends.high,
        digits=0,
        row_height=_ROW,
        in_cell=written if cell >= 13 and len(kinds) * len(blocks) <= _MOST_CELLS else None,
        palette=palette,
        width=min(width, left + 64 * len(blocks)),
        left=left,
    )
    return element(
        "div", draw_heat(heat), class_="sideways", tabindex="0", role="region", aria_label=f"{name}, drawing"
    )


def ranks_figure(detail: Detail) -> str:
    """Return ranks as a map, with their key, and as numbers."""
    ranks = detail.ranks
    if not ranks:
        return element("p", "The manifest has no ranks.")
    most = float(max(*ranks.values(), 1))
    drawn = rank_map("Rank of each layer by module kind and block", ranks, Ends(0.0, most), detail.places)
    outside = [f"{shown(n, 80)}: {r}" for n, r in ranks.items() if detail.places[n].block is None]
    caption = (
        "A row a module kind, a column a transformer block; the colour and the number are the rank. Where a block has "
        "several layers of a kind (experts) it is their mean; hatched: no such layer among the targets."
    )
    told = element("p", said("Outside the blocks: " + ", ".join(outside[:20])), class_="note") if outside else ""
    map_ = figure(caption, scale("0", f"{most:.0f}", "rank"), drawn, class_="map") if drawn else ""
    return map_ + told + _kinds_table(detail)


def _kinds_table(detail: Detail) -> str:
    rows, keys = [], []
    by_kind = defaultdict(list)
    for layer in detail.layers:
        if layer.rank is not None:
            by_kind[detail.places[layer.name].kind].append(layer)
    for kind, layers in by_kind.items():
        ranks = [layer.rank for layer in layers if layer.rank is not None]
        explained = [detail.explained[layer.name] for layer in layers if layer.name in detail.explained]
        mean = statistics.fmean(explained) if explained else None
        parameters = sum(layer.parameters or 0 for layer in layers)
        figures = [len(ranks), sum(ranks), min(ranks), round(statistics.median(ranks), 1), max(ranks), ranks.count(0)]
        rows.append([element("code", said(shown(kind, 80))), *map(plain, figures), f"{parameters:,}", share(mean)])
        keys.append([kind, *figures, parameters, mean])
    head = ["module kind", "layers", "total rank", "least", "median", "most", "rank 0", "parameters", "explained"]
    return table("Ranks by module kind; explained: mean share of the inputs' variance that is kept", head, rows, keys)


def spectra_figure(of: Sequence[tuple[str, Sequence[KindSpectrum]]]) -> str:
    """Return spectra of one artifact, with bands, or of several, overlaid; `of` has (name, spectra)."""
    kinds = list(dict.fromkeys(spectrum.kinds for _, spectra in of for spectrum in spectra))
    if not kinds:
        return ""
    by_kind = [{spectrum.kinds: spectrum for spectrum in spectra} for _, spectra in of]
    alone = len(of) == 1
    middles = [y for _, spectra in of for spectrum in spectra for y in spectrum.medians if y > 0] or [0.1, 1.0]
    highs = [y for _, spectra in of for spectrum in spectra for y in spectrum.highs] if alone else []
    ends = max(min(middles) / 3, max(middles) * 1e-8), max(*middles, *highs)
    panels = []
    for kind in kinds[:_MOST_PANELS]:
        curves = tuple(
            _spectrum_curve(name, spectra[kind], at, with_band=alone)
            for at, ((name, _), spectra) in enumerate(zip(of, by_kind, strict=True))
            if kind in spectra
        )
        plot = CurvePlot(
            name=f"Explained variance by component, {shown(kind, 80)}",
            x_label="component",
            y_label="share of variance",
            curves=curves,
            y_text=_per_cent,
            logarithmic=True,
            y_ends=ends,
            width=300.0,
            height=215.0,
        )
        panels.append(element("div", element("h3", element("code", said(shown(kind, 80)))), draw_curves(plot)))
    caption = (
        "A panel a set of module kinds that share their input. Line: the middle over the blocks"
        + ("; band: least and largest." if alone else ".")
        + " The first component is number 1; the axis is logarithmic."
    )
    if len(kinds) > _MOST_PANELS:
        caption += f" {len(kinds) - _MOST_PANELS} more sets are in the table only."
    inner = figure(caption, "" if alone else key([name for name, _ in of]), element("div", *panels, class_="panels"))
    return inner + _spectra_table(of)


def _spectrum_curve(name: str, spectrum: KindSpectrum, at: int, with_band: bool) -> Curve:
    steps = range(1, len(spectrum.medians) + 1)
    band = tuple(zip(spectrum.lows, spectrum.highs, strict=True)) if with_band else ()
    return Curve(name, tuple(zip(map(float, steps), spectrum.medians, strict=True)), at, at, band)


def _spectra_table(of: Sequence[tuple[str, Sequence[KindSpectrum]]]) -> str:
    most = max((len(s.medians) for _, spectra in of for s in spectra), default=0)
    places_ = [at for at in (1, 2, 4, 8, 16, 32, 64, 128, 256) if at <= most]
    head = ["module kinds", *(["artifact"] if len(of) > 1 else []), "inputs", "mean rank"]
    head += [f"component {at}" for at in places_]
    rows = [
        [
            element("code", said(shown(spectrum.kinds, 120))),
            *([said(name)] if len(of) > 1 else []),
            str(spectrum.inputs),
            f"{spectrum.mean_rank:.1f}",
            *(share(spectrum.medians[at - 1], 3) if at <= len(spectrum.medians) else "–" for at in places_),
        ]
        for name, spectra in of
        for spectrum in spectra
    ]
    inner = table("Middle share of the input's variance, by component", head, rows)
    return element("details", element("summary", "Spectra as numbers"), inner)


def convergence_figure(of: Sequence[tuple[str, Sequence[tuple[int, float]]]]) -> str:
    """Return the share of layers converged by step, and in words when half, most and all had."""
    known = [(name, curve) for name, curve in of if curve]
    if not known:
        return ""
    curves = tuple(
        Curve(name, tuple((float(step), 100 * part) for step, part in curve), at, at)
        for at, (name, curve) in enumerate(known)
    )
    plot = CurvePlot("Layers converged by step", "steps done (SVD updates)", "layers converged, %", curves,
                     y_text=lambda value: f"{value:.0f}", y_ends=(0.0, 100.0), width=460.0)  # fmt: skip
    legend = key([name for name, _ in known]) if len(of) > 1 else ""
    lines = [
        element("p", said((f"{name}: " if len(of) > 1 else "") + _in_words(curve)), class_="note")
        for name, curve in known
    ]
    return figure(
        "Share of the layers that were not updated any more.", legend, draw_curves(plot), class_="one"
    ) + "".join(lines)


def _in_words(curve: Sequence[tuple[int, float]]) -> str:
    told = []
    for part, words in ((0.5, "half of the layers"), (0.9, "nine in ten"), (1.0, "all")):
        step = next((step for step, share_ in curve if share_ >= part - 1e-9), None)
        told += [f"{words} had converged after {step:,} steps"] if step is not None else []
    last_step, last = curve[-1]
    if last < 1:
        told.append(f"{share(last)} after {last_step:,} steps, the last")
    return ("; ".join(told) + ".").capitalize()


def difference_map(a: Mapping[str, int], b: Mapping[str, int]) -> str:
    """Return the map of b's ranks less a's, over the layers that both have."""
    common = {name: float(b[name] - a[name]) for name in a if name in b}
    if not common:
        return ""
    most = max(max(abs(value) for value in common.values()), 1.0)
    drawn = rank_map(
        "Difference of ranks by module kind and block", common, Ends(-most, most), places(list(common)), DIFFERENCE
    )
    ends = f"−{most:.0f}", f"+{most:.0f}"
    return (
        figure("Rank in B less rank in A.", scale(*ends, "B less A", DIFFERENCE), drawn, class_="map") if drawn else ""
    )


def key(names: Sequence[str]) -> str:
    """Return what the lines are."""
    items = [
        element("li", element("span", class_=f"dash c{at}{' dashed' if at else ''}"), said(name))
        for at, name in enumerate(names)
    ]
    return element("ul", *items, class_="key")


def _per_cent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _signed(value: float) -> str:
    rounded = round(value)
    return "" if rounded == 0 else f"+{rounded}" if rounded > 0 else f"−{-rounded}"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
