"""The figures beside the card: ranks by block, convergence by step, spectra by module kind.

Drawn through matplotlib's objects on the Agg canvas (no pyplot, hence no global state and
no display). Colours are cividis and Okabe-Ito, which colour-blind readers can tell apart.
"""

import importlib
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eva_dist.artifact.facts import LayerFacts
from eva_dist.artifact.layer_names import Place, block_grid, places
from eva_dist.artifact.tables import converged_by_step
from eva_dist.calibration.controller import ConvergenceRow, PointState
from eva_dist.config import Budget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS_FIGURE = "ranks.png"
CONVERGENCE_FIGURE = "convergence.png"
SPECTRA_FIGURE = "spectra.png"

_BLUE, _ORANGE = "#0072B2", "#D55E00"
_MOST_NUMBERED_BLOCKS = 48
_PANEL_COLUMNS = 4


def write_plots(folder: Path, layers: Sequence[LayerFacts], state: PointState, r: int, tau: float) -> None:
    """Write the three figures as PNG, without a time stamp; `tau` is what the history was counted with.

    Where artifacts were merged there is no history, and no figure of it.
    """
    by_name = places([facts.name for facts in layers])
    ranks = {facts.name: facts.rank for facts in layers}
    _save_png(draw_ranks(ranks, by_name, r, state.plan.budget), folder / RANKS_FIGURE)
    if state.history:
        _save_png(draw_convergence(state, tau), folder / CONVERGENCE_FIGURE)
    _save_png(draw_spectra(layers, by_name), folder / SPECTRA_FIGURE)


def prepare_to_draw() -> None:
    """Import what draws, which takes a second, before there is anything to draw."""
    importlib.import_module("matplotlib.backends.backend_agg")


def draw_ranks(ranks: dict[str, int], by_name: dict[str, Place], r: int, budget: Budget = Budget.ranks) -> "Figure":
    """Return the heat map of ranks, a column a block and a row a module kind."""
    sorted_layers = block_grid(by_name, outside=True)
    kinds, blocks = sorted_layers.kinds, sorted_layers.blocks
    grid = np.array(sorted_layers.means(ranks), dtype=float)  # NaN where there is no layer
    left = 0.35 + 0.085 * max(len(kind) for kind in kinds)
    width = left + 1.0 + max(4.0, 0.33 * min(len(blocks), _MOST_NUMBERED_BLOCKS))
    figure = _new_figure(width, 1.9 + 0.34 * len(kinds))
    axes = _panel_axes(figure, left, right=1.0, bottom=0.65, top=0.4)
    axes.set_facecolor("#dddddd")  # where a block has no such layer
    image = axes.imshow(np.ma.masked_invalid(grid), cmap="cividis", vmin=0, aspect="auto")
    axes.vlines(np.arange(0.5, len(blocks) - 1), -0.5, len(kinds) - 0.5, color="white", linewidth=0.6)
    axes.hlines(np.arange(0.5, len(kinds) - 1), -0.5, len(blocks) - 0.5, color="white", linewidth=0.6)
    axes.set_yticks(range(len(kinds)), list(kinds))
    shown = range(0, len(blocks), 1 + len(blocks) // _MOST_NUMBERED_BLOCKS)
    axes.set_xticks(list(shown), ["none" if blocks[i] is None else str(blocks[i]) for i in shown])
    axes.set_xlabel("transformer block" + (" (none: layer outside the blocks)" if None in blocks else ""))
    given = f"r = {r}" if budget is Budget.ranks else f"parameters of r = {r}"
    axes.set_title(f"Rank handed out to each layer ({len(ranks)} layers, {given})")
    figure.colorbar(image, cax=_colour_bar_axes(figure, 0.9, bottom=0.65, top=0.4), label="rank")
    if len(blocks) <= _MOST_NUMBERED_BLOCKS:
        _write_numbers(axes, grid)
    return figure


def draw_convergence(state: PointState, tau: float) -> "Figure":
    """Return the curves of layers, and of components handed out, that have converged after each step, to `tau`."""
    layers, components = convergence_curves(state)
    steps = range(1, state.steps + 1)
    figure = _new_figure(7.0, 4.0)
    axes = _panel_axes(figure, 0.75, right=0.2, bottom=0.6, top=0.4)
    marker = "o" if state.steps <= 40 else None
    axes.plot(steps, layers, color=_BLUE, marker=marker, markersize=4, label="layers converged")
    label = f"components with a rank, cosine ≥ {tau:g}"
    axes.plot(steps, components, color=_ORANGE, linestyle="--", marker=marker, markersize=4, label=label)
    axes.set(xlabel="steps done (SVD updates)", ylabel="converged, %", ylim=(-3, 103))
    axes.locator_params(axis="x", integer=True)
    if state.steps == 1:
        axes.set_xlim(0, 2)
    axes.set_title(
        f"Convergence: {state.layers_converged} of {len(state.plan.layers)} layers after {state.steps} steps"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def convergence_curves(state: PointState) -> tuple[list[float], list[float]]:
    """Return per cent of layers, and of components with a rank, that have converged after each step."""
    sizes = [len(group.members) for group in state.plan.groups]
    history = [(row.step, sizes[row.group]) for row in state.history]
    step_R, layers_R = np.array(history, dtype=int).reshape(-1, 2).T
    shares = converged_by_step(step_R, layers_R, sum(sizes), state.layers_converged, state.steps)
    return [100.0 * share for share in shares], _components_converged(state)


def _components_converged(state: PointState) -> list[float]:
    """Return per cent of the components with a rank that have passed tau after each step."""
    by_step: list[list[ConvergenceRow]] = [[] for _ in range(state.steps)]
    for row in state.history:
        by_step[row.step].append(row)
    turning = [*({row.group for row in rows} for rows in by_step[1:]), set(state.active)]
    components = []
    latest: dict[int, tuple[int, int]] = {}
    for rows, still in zip(by_step, turning, strict=True):
        for row in rows:
            # A row counts all components past tau; when the group still turns, not all of them are among the first.
            latest[row.group] = (min(row.components_converged, row.rank - (row.group in still)), row.rank)
        passed, handed_out = (sum(column) for column in zip(*latest.values(), strict=True))
        components.append(100.0 * passed / max(handed_out, 1))
    return components


def draw_spectra(layers: Sequence[LayerFacts], by_name: dict[str, Place]) -> "Figure":
    """Return a panel for each set of module kinds that share an input, with a line for each input group."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    panels: dict[str, dict[int, LayerFacts]] = defaultdict(dict)
    for facts in layers:
        kinds = list(dict.fromkeys(by_name[name].kind for name in facts.group.members))
        panels[" / ".join(kinds)].setdefault(facts.group.index, facts)
    blocks = [place.block for place in by_name.values() if place.block is not None] or [0]
    columns = min(len(panels), _PANEL_COLUMNS)
    rows = -(-len(panels) // columns)
    figure = _new_figure(2.0 + max(2, columns) * 2.9, 1.5 + 2.7 * rows)
    tallest = max(len(_wrap_title(title).splitlines()) for title in panels)
    edges = {"left": 1.0, "right": 1.1, "bottom": 0.6, "top": 0.4 + 0.15 * tallest}
    gap = 0.15 + 0.18 * tallest
    grid = np.ravel(_panel_axes(figure, **edges, rows=rows, columns=columns, gap=gap))
    colours = _block_colours(blocks)
    for axes, (title, groups) in zip(grid, panels.items(), strict=False):
        _draw_spectra(axes, {f: colours.to_rgba(by_name[f.name].block or 0) for f in groups.values()})
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())  # ticks are what takes time
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.set_title(_wrap_title(title), fontsize=9)
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle("Explained-variance ratio of each component (thick: has a rank, thin: has none)", fontsize=11)
    figure.supxlabel("component", fontsize=10)
    figure.supylabel("share of the input's total variance", fontsize=10)
    if len(set(blocks)) > 1:
        beside = _colour_bar_axes(figure, 0.95, bottom=0.6, top=0.55)
        bar = figure.colorbar(colours, cax=beside, label="transformer block")
        bar.locator = MaxNLocator(integer=True)
    return figure


def _draw_spectra(axes: Any, colours: dict[LayerFacts, Any]) -> None:
    """Draw a thin line for all components of each group, and a thick one for those with a rank."""
    from matplotlib.collections import LineCollection

    thin, thick, lone = [], [], []
    for facts, colour in colours.items():
        ratios = facts.components.explained_variance_ratio_K.double().cpu().numpy()
        ratios = np.where(ratios > 0, ratios, np.nan)  # a log axis has no place for zero
        points = np.column_stack((np.arange(1, len(ratios) + 1), ratios))
        thin.append(points)
        thick.append(points[: facts.group_rank])
        if facts.group_rank == 1:
            lone.append((*points[0], colour))
    palette = list(colours.values())
    axes.add_collection(LineCollection(thin, colors=palette, linewidths=0.7, alpha=0.6))
    axes.add_collection(LineCollection(thick, colors=palette, linewidths=1.8))
    if lone:
        x, y, colour = zip(*lone, strict=True)
        axes.scatter(x, y, c=colour, s=6)
    axes.autoscale_view()


def _block_colours(blocks: Sequence[int]) -> Any:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    darker = ListedColormap(colormaps["cividis"](np.linspace(0, 0.88, 256)))  # its yellow end is lost on white
    return ScalarMappable(Normalize(min(blocks), max(blocks)), darker)


def _write_numbers(axes: Any, grid: "np.ndarray[Any, Any]") -> None:
    middle = np.nanmax(grid) / 2
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if value <= middle else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)


def _wrap_title(title: str, width: int = 30) -> str:
    return "\n".join(textwrap.wrap(title, width))


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120)


def _panel_axes(
    figure: "Figure",
    left: float,
    right: float,
    bottom: float,
    top: float,
    rows: int = 1,
    columns: int = 1,
    gap: float = 0.0,
) -> Any:
    """Return axes within these edges, in inches; matplotlib's own search for them would take most of the time."""
    width, height = figure.get_size_inches()
    edges = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
    panel = (height - bottom - top - gap * (rows - 1)) / rows
    spacing = {"hspace": gap / panel, "wspace": 0.08}
    return figure.subplots(rows, columns, sharex=rows > 1 or columns > 1, sharey=True, gridspec_kw=edges | spacing)


def _colour_bar_axes(figure: "Figure", right: float, bottom: float, top: float) -> Any:
    """Return the axes of a colour bar that begins `right` inches from the right edge."""
    width, height = figure.get_size_inches()
    return figure.add_axes((1 - right / width, bottom / height, 0.2 / width, 1 - (bottom + top) / height))


def _save_png(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})
