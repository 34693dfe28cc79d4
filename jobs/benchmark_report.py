"""The benchmark's figures as tables, a picture and one line."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eva_dist.artifact.card.card import markdown_table
from jobs.contenders import Contender
from jobs.measures import GrowthRow, PrecisionRow, ScalingRow, SolverRow, UpdateRow

_COLOURS = {"probe": "#999999", "forward": "#0072B2", "svd": "#D55E00", "decision": "#009E73"}
_PHASES = ("load", "probe", "forward", "exchange", "svd", "decision", "write")


@dataclass(frozen=True)
class Figures:
    """All that was measured; `runs` and `accuracy` by data order, PEFT first in each."""

    machine: str
    settings: str
    seeds: Sequence[int]
    runs: Sequence[Sequence[Contender]]
    accuracy: Sequence[Mapping[str, Mapping[str, float]]]
    memory: Mapping[str, float]
    solvers: Sequence[SolverRow]
    precision: Sequence[PrecisionRow]
    scaling: Sequence[ScalingRow]
    growth: Sequence[GrowthRow]
    updates: Sequence[UpdateRow]

    def of(self, position: int) -> list[Contender]:
        """Return one contender's runs, a data order each."""
        return [found[position] for found in self.runs]


@dataclass(frozen=True)
class Headline:
    """The last line of the benchmark. Seconds are compute: from a loaded model to a state dict in memory.

    `speedup_vs_peft` compares the sums over all data orders, `speedup_a_step_vs_peft` the same
    divided by the steps that each took; `overhead_vs_floor` is our pass over bare forwards of its
    tokens; `deficit_ratio_vs_peft` compares medians. All but the last `_by_dtype` speak of the first dtype.
    """

    speedup_vs_peft: float
    overhead_vs_floor: float
    solver_speedup_vs_peft: float | None
    deficit_ratio_vs_peft: float | None
    speedup_a_step_vs_peft: float
    svd_seconds_ratio_most_workers: float | None
    memory_above_forward_vs_trackers: float
    overlap_at_stop: dict[str, list[float]]
    speedup_vs_peft_by_dtype: dict[str, float]
    overhead_vs_floor_by_dtype: dict[str, float]


def headline(figures: Figures) -> Headline:
    """Reduce the figures to what the targets speak of."""
    peft, others = figures.of(0), [figures.of(i) for i in range(1, len(figures.runs[0]))]
    seconds = sum(one.compute_seconds for one in peft)
    speedups = {runs[0].name: seconds / sum(one.compute_seconds for one in runs) for runs in others}
    overheads = {
        runs[0].name: sum(one.extra["pass_seconds"] for one in runs) / sum(one.extra["floor_seconds"] for one in runs)
        for runs in others
    }
    first = others[0]
    a_step = speedups[first[0].name] * sum(one.steps for one in first) / sum(one.steps for one in peft)
    theirs, mine = (figures.solvers[0], figures.solvers[1]) if figures.solvers else (None, None)
    svd_seconds = [row.svd_processor_seconds for row in figures.scaling if row.exchange == "to_owner"]
    return Headline(
        speedup_vs_peft=round(speedups[first[0].name], 2),
        overhead_vs_floor=round(overheads[first[0].name], 3),
        solver_speedup_vs_peft=round(theirs.milliseconds / mine.milliseconds, 2) if theirs and mine else None,
        deficit_ratio_vs_peft=round(mine.deficit_median / theirs.deficit_median, 3) if theirs and mine else None,
        speedup_a_step_vs_peft=round(a_step, 2),
        svd_seconds_ratio_most_workers=round(svd_seconds[-1] / svd_seconds[0], 3) if len(svd_seconds) > 1 else None,
        memory_above_forward_vs_trackers=round(figures.memory["memory_above_forward_vs_trackers"], 3),
        overlap_at_stop={
            name: [round(statistics.mean(a[name][key] for a in figures.accuracy), 4) for key in _OVERLAPS]
            for name in (figures.accuracy[0] if figures.accuracy else {})
        },
        speedup_vs_peft_by_dtype={name: round(value, 2) for name, value in speedups.items()},
        overhead_vs_floor_by_dtype={name: round(value, 3) for name, value in overheads.items()},
    )


_OVERLAPS = ("overlap_median", "overlap_mean", "overlap_worst")


def to_markdown(figures: Figures) -> str:
    """Return every table that there is something for."""
    runs = (_runs_table, _accuracy_table, _solvers_table, _precision_table)
    tables = [table(figures) for table in (*runs, _scaling_table, _growth_table, _updates_table)]
    shown = [markdown_table(head, rows) for head, rows in tables if rows]
    return "\n\n".join([f"{figures.settings}\n\n{figures.machine}", *shown, _memory_line(figures)]) + "\n"


_Table = tuple[list[str], list[list[Any]]]


def _accuracy_table(figures: Figures) -> _Table:
    head = ["data order", "at the stop", "overlap, median", "mean", "worst", "deficit, median"]
    rows = [
        [seed, name, *(f"{a[name][key]:.4f}" for key in _OVERLAPS), f"{a[name]['stop_deficit_median']:.2e}"]
        for seed, a in zip(figures.seeds, figures.accuracy, strict=False)
        for name in a
    ]
    return head, rows


def _solvers_table(figures: Figures) -> _Table:
    head = ["solver", "ms an update", "times faster", "deficit, median", "worst"]
    rows = []
    for row in figures.solvers:
        faster = figures.solvers[0].milliseconds / row.milliseconds
        deficits = [f"{row.deficit_median:.1e}", f"{row.deficit_worst:.1e}"]
        rows.append([row.name, f"{row.milliseconds:.2f}", f"{faster:.1f}", *deficits])
    return head, rows


def _precision_table(figures: Figures) -> _Table:
    agreement = ["overlap with float32, median", "worst", "|cos|, median"]
    rows = []
    for row in figures.precision:
        found = (row.overlap_median, row.overlap_worst, row.cosine_median)
        rows.append([row.dtype, row.ranks_changed, row.largest_change, *(f"{value:.5f}" for value in found)])
    return ["forward in", "layers of other rank", "by at most", *agreement], rows


def _scaling_table(figures: Figures) -> _Table:
    head = ["workers", "exchange", "SVD processor seconds, summed", "against 1 worker", "bytes sent a token"]
    rows = []
    for row in figures.scaling:
        ratio = row.svd_processor_seconds / figures.scaling[0].svd_processor_seconds
        seconds = [f"{row.svd_processor_seconds:.2f}", f"{ratio:.2f}"]
        rows.append([row.workers, row.exchange, *seconds, f"{row.sent_bytes_per_token:,.0f}"])
    return head, rows


def _growth_table(figures: Figures) -> _Table:
    rows = []
    for row in figures.growth:
        seconds = [f"{row.forward_seconds:.3f}", f"{row.svd_seconds:.3f}"]
        rows.append([row.changed, row.value, f"{row.tokens:.0f}", *seconds, f"{row.tracker_bytes / 1e6:.2f}"])
    return ["changed", "to", "tokens a step", "forward s", "SVD s", "trackers MB"], rows


def _updates_table(figures: Figures) -> _Table:
    rows = [[row.rows, row.in_features, row.n_components, f"{row.milliseconds:.2f}"] for row in figures.updates]
    return ["rows", "in_features", "components", "ms an update"], rows


def _memory_line(figures: Figures) -> str:
    m = figures.memory
    return (
        f"Memory: trackers {m['tracker_bytes'] / 1e6:.2f} MB; peak above the model and the largest forward "
        f"({m['forward_bytes'] / 1e6:.1f} MB) {m['above_forward_bytes'] / 1e6:.2f} MB, "
        f"{m['memory_above_forward_vs_trackers']:.3f} of the trackers."
    )


def draw(figures: Figures, path: Path) -> None:
    """Write the picture: compute seconds by phase, a bar a contender, and the solvers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    bars, points = figure.subplots(1, 2, width_ratios=(3, 2))
    names, totals = _seconds_by_phase(figures)
    left = [0.0] * len(names)
    for phase, colour in _COLOURS.items():
        widths = [by_phase.get(phase, 0.0) for by_phase in totals]
        bars.barh(names, widths, left=left, color=colour, label=phase.replace("svd", "SVD"))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for name, total in zip(names, left, strict=True):
        bars.text(total, name, f" {total:.1f} s", va="center")
    bars.invert_yaxis()
    bars.set_xlim(0, 1.15 * max(left))
    bars.set_xlabel(f"seconds, mean of {len(figures.seeds)} data orders")
    bars.legend(frameon=False, loc="lower right")
    for row in figures.solvers:
        if row.name != "incremental":  # lies on PEFT's point: it is PEFT's arithmetic
            points.plot(row.milliseconds, row.deficit_median, "o", color="#D55E00" if "PEFT" in row.name else "#0072B2")
            points.annotate(f" {row.name}", (row.milliseconds, row.deficit_median), fontsize=8, va="bottom")
    points.set(xscale="log", yscale="log", xlabel="ms an update", ylabel="captured-variance deficit, median")
    points.set_xticks([1, 2, 5, 10, 20, 50], labels=["1", "2", "5", "10", "20", "50"], minor=False)
    points.set_xticks([], minor=True)
    points.margins(x=0.6, y=0.2)
    for axes in (bars, points):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{figures.settings}\n{figures.machine}", fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _seconds_by_phase(figures: Figures) -> tuple[list[str], list[dict[str, float]]]:
    """Return names and mean seconds by phase; the floor stands behind our first dtype."""
    names, totals = [], []
    for position in range(len(figures.runs[0])):
        runs = figures.of(position)
        names.append(runs[0].name)
        totals.append({phase: statistics.mean(run.seconds.get(phase, 0.0) for run in runs) for phase in _COLOURS})
        if "floor_seconds" in runs[0].extra:
            names.append(f"floor {runs[0].name.rpartition(' ')[2]}")
            totals.append({"forward": statistics.mean(run.extra["floor_seconds"] for run in runs)})
    return names, totals


def _runs_table(figures: Figures) -> _Table:
    tail = ["floor s", "overhead", "peak MB", "layers converged", "times faster"]
    head = ["data order", "run", "compute s", "steps", "tokens/s", *_PHASES, *tail]
    rows: list[list[Any]] = []
    for seed, found in zip(figures.seeds, figures.runs, strict=True):
        for one in found:
            floor, spent = one.extra.get("floor_seconds"), one.extra.get("pass_seconds")
            rows.append(
                [seed, one.name, f"{one.compute_seconds:.1f}", one.steps, f"{one.tokens_per_second:,.0f}"]
                + [f"{one.seconds[p]:.2f}" if p in one.seconds else "" for p in _PHASES]
                + ([f"{floor:.1f}", f"{spent / floor:.3f}"] if floor and spent else ["", ""])
                + [f"{one.extra['peak_bytes'] / 1e6:.0f}"]
                + [f"{one.extra['layers_converged']:.0f}/{one.extra['layers_total']:.0f}" if floor else "all"]
                + [f"{found[0].compute_seconds / one.compute_seconds:.2f}"]
            )
    return head, rows
