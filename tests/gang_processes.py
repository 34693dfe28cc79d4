"""One local Ray for the tests of a gang, and a look at the processes it leaves."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from eva_dist.calibration.controller import PointResult
from eva_dist.calibration.worker import Assignment
from eva_dist.cluster.attempts import run_on_gang
from eva_dist.run.prepare import Prepared, assignment
from tests.observers import Ends


def assignment_of(run: Prepared, **changes: Any) -> Assignment:
    return replace(assignment(run), **changes)


def run_alone(assignment: Assignment, on_step: Any, *options: Any) -> PointResult:
    """Run a pass of one point on a gang; what refused the point is raised."""
    observer = Ends(on_step)
    run_on_gang(assignment, observer, *options)
    (end,) = observer.ends.values()
    if isinstance(end, Exception):
        raise end
    return end


def worker_pids() -> list[int]:
    """Return the processes that are gang workers now, from /proc."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::RayWorker") and _is_ours(int(entry.name)):
                pids.append(int(entry.name))
    return sorted(pids)


def _is_ours(pid: int) -> bool:
    """Tell whether a process descends from this one, so that other runs on the machine do not count."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False
