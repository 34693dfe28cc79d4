"""`eva-dist plan`: what a run will need, before it is started."""

import subprocess
import sys
from typing import Annotated

import typer

from eva_dist.cli.clone import WorkingDir, find_clone


def plan(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="OVERRIDES...", help="Settings, as of jobs/precompute.py.")
    ] = None,
    working_dir: WorkingDir = None,
) -> None:
    """Say what a run will need, from the model's config alone: memory, bytes, FLOPs, time. Runs jobs/plan.py."""
    script = find_clone(working_dir, "plan.py") / "jobs" / "plan.py"
    raise typer.Exit(subprocess.run([sys.executable, str(script), *(overrides or [])], check=False).returncode)
