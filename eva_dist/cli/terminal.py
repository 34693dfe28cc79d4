"""What commands print: text that cannot steer the terminal, tables that fit it, one JSON document.

Standard output is for results, all else goes to standard error. Names and settings come from manifests that anybody
may have written: they are shown as `rich.text.Text`, never as markup, without control characters.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from eva_dist.render.words import NONE, amount, printable, without_odd_floats

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

GAP = 2
_UNBOUNDED = 10_000


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, and what its cells say of a row's subject.

    Of those that do not fit, the one with the largest `drop` goes first; 0 stays.
    """

    head: str
    say: Callable[[Any], object]
    right: bool = False
    drop: int = 0


def results_console() -> "Console":
    """Return the console for results. Where nobody says how wide it is, in a pipe, lines stay whole."""
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=None if known else _UNBOUNDED, highlight=False, markup=False, emoji=False)


def print_parts(console: "Console", *parts: object) -> None:
    """Print parts below each other; into a pipe without blanks at the ends of lines."""
    if console.is_terminal:
        for part in parts:
            console.print(part)
        return
    with console.capture() as drawn:
        for part in parts:
            console.print(part)
    print(*(line.rstrip() for line in drawn.get().splitlines()), sep="\n")


def replace_unencodable() -> None:
    """Let a terminal that knows no `–` get a `?` for it instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(message: str) -> None:
    """Print a message on standard error."""
    print(printable_lines(message), file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """Print a document as JSON on standard output; it is ASCII, so a terminal is safe from it."""
    print(json.dumps(without_odd_floats(document, lambda odd: None), indent=2, default=str, allow_nan=False))


def print_outcome(outcome: Mapping[str, Any], unconverged: str) -> None:
    """Print what was published as one JSON line; `unconverged` is said of layers that have not converged, if any."""
    if (left := outcome["layers_total"] - outcome["layers_converged"]) > 0:
        print(f"{left} of {outcome['layers_total']} layers {unconverged}", file=sys.stderr)
    print(json.dumps(outcome))


def printable_lines(message: str) -> str:
    """Return lines without what would steer a terminal."""
    return "\n".join(printable(line) for line in message.split("\n"))


def cell(value: object, style: str = "") -> "Text":
    """Return one line of text as it is, a dash for None."""
    from rich.text import Text

    return Text(NONE if value is None else printable(str(value)), style, no_wrap=True, overflow="fold")


def fitting_table(columns: Sequence[Column], subjects: Iterable[Any], width: int) -> "Table":
    """Return a table with a row for each subject, of the columns that fit into `width`: all if there is room."""
    from rich.table import Table
    from rich.text import Text

    rows = [
        [said if isinstance(said := column.say(one), Text) else cell(said) for column in columns] for one in subjects
    ]
    needed = [
        max([len(column.head), *(row[at].cell_len for row in rows)], default=0) for at, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    while sum(needed[at] + GAP for at in shown) - GAP > width:
        last = max(shown, key=lambda at: columns[at].drop)
        if not columns[last].drop:
            break
        shown.remove(last)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for at in shown:
        justify = "right" if columns[at].right else "left"
        table.add_column(columns[at].head, justify=justify, no_wrap=True, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(row[at] for at in shown))
    return table


def print_table(columns: Sequence[Column], subjects: Iterable[Any]) -> None:
    """Print a table with a row for each subject."""
    console = results_console()
    print_parts(console, fitting_table(columns, subjects, console.width))


def facts_table(facts: Mapping[str, object]) -> "Table":
    """Return names and values, two columns; what is None is left out."""
    from rich.table import Table

    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            shown = cell(value)
            shown.no_wrap = False
            table.add_row(cell(name), shown)
    return table


def size_text(count: int | None) -> str:
    """Return a number of bytes, e.g. `20.5MB`."""
    return NONE if count is None else f"{amount(count)}B"


def age_text(moment: datetime | None, now: datetime) -> str:
    """Return how long ago a moment is, in the largest unit that counts to two: `90s`, `3h`, `12d`."""
    if moment is None:
        return NONE
    seconds = max((now - moment).total_seconds(), 0.0)
    for unit, size in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def duration(words: str) -> timedelta | None:
    """Return what `90s`, `30m`, `24h` or `7d` says; None if it says nothing of the kind."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    try:
        seconds = float(words[:-1]) * units[words[-1:]]
        return timedelta(seconds=seconds) if seconds >= 0 else None
    except (ValueError, KeyError, OverflowError):
        return None
