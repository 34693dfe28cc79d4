"""A preflight as text for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from eva_dist.config import Budget
from eva_dist.preflight.estimate import Preflight


@dataclass(frozen=True)
class Check:
    """One figure of an estimate beside what was measured."""

    name: str
    predicted: float
    measured: float
    unit: str

    @property
    def error(self) -> float:
        """Prediction over measurement, less one; endless where nothing was measured."""
        if self.measured == 0:
            return 0.0 if self.predicted == 0 else float("inf")
        return self.predicted / self.measured - 1


def to_text(found: Preflight) -> str:
    """Return the tables of a preflight."""
    sections = [rows(found) for rows in (_model_lines, _step_lines, _memory_lines, _time_lines, _artifact_lines)]
    lines = [line for title, rows in sections for line in ("", title, *_table_lines(rows))]
    return "\n".join([*lines[1:], "", *_fit_lines(found), *(f"Note: {note}" for note in found.notes)]) + "\n"


def checks_to_text(title: str, checks: Sequence[Check]) -> str:
    """Return a table of predicted, measured and error in percent."""
    rows = [["", "predicted", "measured", "error"]]
    for check in checks:
        values = (_format_amount(value, check.unit) for value in (check.predicted, check.measured))
        rows.append([check.name, *values, f"{100 * check.error:+.1f} %"])
    return "\n".join([title, *_table_lines(rows)]) + "\n"


Rows = list[list[str]]


def _model_lines(found: Preflight) -> tuple[str, Rows]:
    model = found.model
    rows = [
        ["parameters", f"{model.parameters:,}"],
        ["  loaded (no head)", f"{model.loaded_parameters:,}", f"{model.dtype}, {size(model.loaded_bytes)}"],
        ["target layers", f"{model.layers:,}"],
        ["input groups", f"{model.input_groups:,}", "one SVD each"],
        ["rank budget", f"{model.rank_budget:,}"],
    ]
    if model.budget == Budget.params.value:
        rows[-1] = ["parameter budget", f"{model.parameter_budget:,}", "LoRA's A and B"]
    return f"Model {model.name}", rows


def _step_lines(found: Preflight) -> tuple[str, Rows]:
    step, work = found.step, found.work
    attention = 100 * work.attention_operations / max(1, work.forward_operations)
    rows = [
        ["tokens, at most", f"{step.tokens:,}", f"{step.samples} samples"],
        ["  of one worker", f"{step.tokens_of_worker:,}", f"{step.forwards:g} forwards, layout {step.layout}"],
        ["forward", f"{work.forward_operations / 1e12:,.3g} TFLOP", f"attention {attention:.1f} %"],
        ["SVDs", f"{work.svd_operations / 1e12:,.3g} TFLOP", "float32 and float64"],
        ["rows exchanged", size(work.exchanged_bytes), "all workers"],
    ]
    if step.shard_size > 1:
        rows.append(["weights gathered", size(work.gathered_bytes), "all workers"])
    return f"A step on {step.workers} workers, shard size {step.shard_size}", rows


def _memory_lines(found: Preflight) -> tuple[str, Rows]:
    memory = found.memory
    told = {
        "weights": "",
        "gathered": "blocks beside the shard, in a forward",
        "activations": "peak of a forward",
        "rows": "held until their SVD is updated",
        "exchange": "buffers and rows received",
        "trackers": "SVD states and components, all run long",
        "checkpoint": "states set aside while one is written, at most",
        "update": "workspace of SVD updates",
        "host": "shards in the memory of the CPU",
    }
    rows = [[name, size(getattr(memory, name)), text] for name, text in told.items() if getattr(memory, name)]
    share = memory.peak / found.fit.usable_bytes
    rows.append(["peak", size(memory.peak), f"{100 * share:.0f} % of {size(found.fit.usable_bytes)} usable"])
    return f"Memory of the most loaded worker on {found.accelerator.name}; phases do not add up", rows


def _time_lines(found: Preflight) -> tuple[str, Rows]:
    seconds = found.seconds
    rows = [
        [name, f"{value:.4g} s", f"{100 * value / seconds.step:.0f} %"]
        for name in ("forward", "exchange", "svd")
        if (value := getattr(seconds, name))
    ]
    if seconds.gather:
        rows.insert(1, ["gather", f"{seconds.gather:.4g} s", "beside the forward; the longer of the two counts"])
    rows += [
        ["step", f"{seconds.step:.4g} s", f"{found.step.tokens / seconds.step:,.0f} tokens/s"],
        [f"{found.max_steps} steps", _format_time(seconds.max_steps), "eva.max_steps, all layers active throughout"],
    ]
    return "Time of a step", rows


def _artifact_lines(found: Preflight) -> tuple[str, Rows]:
    sizes, by_parameters = found.artifact, found.model.budget == Budget.params.value
    rows = [
        ["EVA state dict", size(sizes.state_dict), "if every layer kept its r"],
        ["adapter", size(sizes.adapter), "A and B" + (", whatever the ranks" if by_parameters else "")],
        ["components", size(sizes.components), "all that are followed, for eva-dist derive"],
        *([["covariance", size(sizes.covariance), "for eva-dist merge"]] if sizes.covariance else []),
        ["tables, plots, card", size(sizes.other), "about"],
        ["all", size(sizes.total)],
    ]
    return "Artifact", rows


def _fit_lines(found: Preflight) -> list[str]:
    verdict = "fits" if found.fit.fits else "does NOT fit"
    lines = [f"As set, a worker {verdict} {found.accelerator.name}."]
    if found.fit.peak is None:
        return [*lines, f"The model {found.fit.says}."]
    return [*lines, f"Smallest that fits: {found.fit.says} ({size(found.fit.peak)} a worker)."]


def _table_lines(rows: Rows) -> list[str]:
    """Return lines: names to the left, figures to the right, what they are behind them."""
    count = max(len(row) for row in rows)
    full = [row + [""] * (count - len(row)) for row in rows]
    widths = [max(len(row[i]) for row in full) for i in range(count)]
    figures = count if count > 3 else 2
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if 0 < i < figures else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in full
    ]


def size(count: float) -> str:
    """Return bytes in a unit of 1000, with three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _format_amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value:,.0f}"
    return f"{value:,.4g} {unit}".rstrip()


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
