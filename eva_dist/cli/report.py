"""`eva-dist report`: what a sweep's points have in common and what sets them apart."""

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Multirun folder: multirun/.../ with 0, 1, 2, ...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json as one JSON object in one line.")] = False,
) -> None:
    """Compare a sweep's points: write index.html, sweep.parquet and sweep.json into FOLDER, and print a table."""
    from eva_dist.report.sweep import write_sweep  # torch, pyarrow: seconds

    written = write_sweep(folder)
    if as_json:
        print(json.dumps(written.manifest))
        return
    print(written.table(), end="")
    print(f"page: {written.page.resolve()}")
