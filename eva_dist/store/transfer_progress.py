"""A progress bar for bytes that arrive: on standard error, and only where that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = bool | Callable[[int], None] | None
"""None: a bar where standard error is a terminal; False: none; a function: called with the size of each piece."""


@contextmanager
def counting(label: str, total: int, progress: Progress) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the size of each piece that arrived, of `total` bytes."""
    if callable(progress):
        yield progress
    elif progress is False or not total or not sys.stderr.isatty():
        yield lambda size: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Bar(TextColumn("{task.description}", markup=False), *columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda size: bar.advance(task, size)
