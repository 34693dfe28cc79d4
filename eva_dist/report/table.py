"""The points as a text table for a terminal."""

from eva_dist.render.words import NONE, overlap, printable, seconds, share
from eva_dist.report.compare_points import Comparison, PointFigures
from eva_dist.report.point import Point
from eva_dist.report.settings import short, text

FIGURES = ("total rank", "parameters", "explained", "steps", "pass time", "overlap", "same ranks")
"""Heads of what is said of a point, on a terminal and on the page."""
_MOST_ERROR = 160


def text_table(found: Comparison) -> str:
    """Return a line a point, then what went wrong, then which point is the reference."""
    names = short(found.varied)
    head = ["point", *(names[key] for key in found.varied), "status", *FIGURES]
    rows = [
        [str(point.number), *_settings_in_words(point, found), point.status, *in_words(figures)]
        for point, figures in zip(found.points, found.figures, strict=True)
    ]
    lines = _align_columns([head, *rows], left=1 + len(found.varied) + 1)
    lines += [_complaint_line(point) for point in found.points if point.problem is not None]
    if found.reference is not None and len(found.compared) > 1:
        number = found.points[found.reference].number
        lines.append(
            f"overlap, same ranks: with point {number} (mean overlap of the subspaces of all layers, and the share of "
            "layers with equal ranks)"
        )
    return "\n".join([*lines, ""])


def _settings_in_words(point: Point, found: Comparison) -> list[str]:
    return [text(point.settings[key]) if key in point.settings else NONE for key in found.varied]


def in_words(figures: PointFigures | None) -> list[str]:
    """Return the cells of a point under `FIGURES`; dashes if it has none."""
    if figures is None:
        return [NONE] * len(FIGURES)
    return [
        f"{figures.total_rank:,}",
        f"{figures.trainable_parameters:,}",
        share(figures.explained_variance, 2),
        f"{figures.steps:,}",
        seconds(figures.pass_seconds),
        overlap(figures.overlap),
        share(figures.equal_ranks, 0),
    ]


def _complaint_line(point: Point) -> str:
    assert point.problem is not None
    message = " ".join(point.problem.message.split())
    cut = message if len(message) <= _MOST_ERROR else message[: _MOST_ERROR - 1] + "…"
    return printable(f"point {point.number} {point.status}: {point.problem.type}: {cut}")


def _align_columns(rows: list[list[str]], left: int) -> list[str]:
    """Return lines; the first `left` columns begin alike, the others end alike."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
