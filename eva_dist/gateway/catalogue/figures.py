"""Drawings of an artifact, or of two: ranks by kind and block, spectra, convergence; each has its numbers beside it."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from eva_dist.artifact.reading import shown
from eva_dist.gateway.catalogue.detail import Detail, KindSpectrum
from eva_dist.gateway.catalogue.layout import render_fragment
from eva_dist.render.curves import Curve, CurvePlot, draw_curves
from eva_dist.render.rank_maps import draw_rank_map
from eva_dist.render.words import NONE, share

_MOST_PANELS = 24
_SHOWN_COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def ranks_figure(detail: Detail) -> str:
    """Return ranks as a map, with their key, and as numbers."""
    ranks = detail.ranks
    most = max(*ranks.values(), 1, 1)
    name = "Rank of each layer by module kind and block"
    return render_fragment(
        "ranks.html",
        map=draw_rank_map(name, ranks, (0.0, float(most)), detail.places) if ranks else "",
        most=most,
        outside=[f"{shown(n, 80)}: {r}" for n, r in ranks.items() if detail.places[n].block is None],
        kinds=_ranks_by_kind(detail),
    )


def _ranks_by_kind(detail: Detail) -> list[tuple[str, list[float], int, float | None]]:
    """Return of each module kind: figures of its ranks, its parameters, and the mean explained variance."""
    by_kind = defaultdict(list)
    for layer in detail.layers:
        if layer.rank is not None:
            by_kind[detail.places[layer.name].kind].append(layer)
    rows = []
    for kind, layers in by_kind.items():
        ranks = [layer.rank for layer in layers if layer.rank is not None]
        explained = [detail.explained[layer.name] for layer in layers if layer.name in detail.explained]
        middle = round(statistics.median(ranks), 1)
        figures = [len(ranks), sum(ranks), min(ranks), middle, max(ranks), ranks.count(0)]
        mean = statistics.fmean(explained) if explained else None
        rows.append((kind, figures, sum(layer.parameters or 0 for layer in layers), mean))
    return rows


def spectra_figure(of: Sequence[tuple[str, Sequence[KindSpectrum]]]) -> str:
    """Return spectra of one artifact, with bands, or of several, overlaid; `of` has (name, spectra)."""
    kinds = list(dict.fromkeys(spectrum.kinds for _, spectra in of for spectrum in spectra))
    if not kinds:
        return ""
    alone = len(of) == 1
    middles = [y for _, spectra in of for spectrum in spectra for y in spectrum.medians if y > 0] or [0.1, 1.0]
    highs = [y for _, spectra in of for spectrum in spectra for y in spectrum.highs] if alone else []
    ends = max(min(middles) / 3, max(middles) * 1e-8), max(*middles, *highs)
    panels = []
    for kind in kinds[:_MOST_PANELS]:
        curves = tuple(
            _spectrum_curve(name, spectrum, at, with_band=alone)
            for at, (name, spectra) in enumerate(of)
            for spectrum in spectra
            if spectrum.kinds == kind
        )
        plot = CurvePlot(
            name=f"Explained variance by component, {shown(kind, 80)}",
            x_label="component",
            y_label="share of variance",
            curves=curves,
            y_text=lambda value: f"{100 * value:.3g}%",
            logarithmic=True,
            y_ends=ends,
            width=300.0,
            height=215.0,
        )
        panels.append((kind, draw_curves(plot)))
    most = max(len(spectrum.medians) for _, spectra in of for spectrum in spectra)
    components = [at for at in _SHOWN_COMPONENTS if at <= most]
    return render_fragment(
        "spectra.html",
        names=[name for name, _ in of],
        panels=panels,
        left_out=len(kinds) - _MOST_PANELS,
        heads=[
            "module kinds",
            *([] if alone else ["artifact"]),
            "inputs",
            "mean rank",
            *(f"component {at}" for at in components),
        ],
        rows=[
            (spectrum, [*([] if alone else [name]), *_spectrum_cells(spectrum, components)])
            for name, spectra in of
            for spectrum in spectra
        ],
    )


def _spectrum_curve(name: str, spectrum: KindSpectrum, at: int, with_band: bool) -> Curve:
    steps = range(1, len(spectrum.medians) + 1)
    band = tuple(zip(spectrum.lows, spectrum.highs, strict=True)) if with_band else ()
    return Curve(name, tuple(zip(map(float, steps), spectrum.medians, strict=True)), at, at, band)


def _spectrum_cells(spectrum: KindSpectrum, components: Sequence[int]) -> list[str]:
    medians = spectrum.medians
    shares = [share(medians[at - 1], 3) if at <= len(medians) else NONE for at in components]
    return [str(spectrum.inputs), f"{spectrum.mean_rank:.1f}", *shares]


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
    return render_fragment(
        "convergence.html",
        names=[name for name, _ in known] if len(of) > 1 else [],
        drawing=draw_curves(plot),
        lines=[(f"{name}: " if len(of) > 1 else "") + _convergence_in_words(curve) for name, curve in known],
    )


def _convergence_in_words(curve: Sequence[tuple[int, float]]) -> str:
    told = []
    for part, words in ((0.5, "half of the layers"), (0.9, "nine in ten"), (1.0, "all")):
        step = next((step for step, share_ in curve if share_ >= part - 1e-9), None)
        told += [f"{words} had converged after {step:,} steps"] if step is not None else []
    last_step, last = curve[-1]
    if last < 1:
        told.append(f"{share(last)} after {last_step:,} steps, the last")
    return ("; ".join(told) + ".").capitalize()
