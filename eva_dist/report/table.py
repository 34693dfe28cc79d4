"""The points as a text table for a terminal."""

from collections.abc import Callable, Mapping
from typing import Any

from eva_dist.render.words import NONE, overlap, printable, seconds, share, whole
from eva_dist.report.compare_points import Comparison, PointFigures
from eva_dist.report.point import Point
from eva_dist.report.settings import short, text

FIGURES: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "total rank": ("total_rank", whole),
    "parameters": ("trainable_parameters", whole),
    "explained": ("explained_variance", lambda value: share(value, 2)),
    "steps": ("steps", whole),
    "pass time": ("pass_seconds", seconds),
    "overlap": ("overlap", overlap),
    "same ranks": ("equal_ranks", lambda value: share(value, 0)),
}
"""What is said of a point, on a terminal and on the page: head to the field of its figures, and how it is written."""
_MOST_ERROR = 160


def text_table(found: Comparison) -> str:
    """Return a line a point, then what went wrong, then which point is the reference."""
    names = short(found.varied)
    head = ["point", *(names[key] for key in found.varied), "status", *FIGURES]
    rows = [
        [
            str(point.number),
            *(words for _, words in setting_cells(point, found)),
            point.status,
            *(words for _, words in figure_cells(figures)),
        ]
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


def setting_cells(point: Point, found: Comparison) -> list[tuple[Any, str]]:
    """Return the values of a point's varied settings and how they are written; None and a dash for one it lacks."""
    given = point.settings
    return [(given.get(key), text(given[key]) if key in given else NONE) for key in found.varied]


def figure_cells(figures: PointFigures | None) -> list[tuple[Any, str]]:
    """Return the values under `FIGURES` and how they are written; None and dashes for a point that has none."""
    if figures is None:
        return [(None, NONE)] * len(FIGURES)
    return [(value := getattr(figures, name), write(value)) for name, write in FIGURES.values()]


def _complaint_line(point: Point) -> str:
    assert point.problem is not None
    message = text(point.problem.message, _MOST_ERROR)
    return printable(f"point {point.number} {point.status}: {point.problem.type}: {message}")


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
