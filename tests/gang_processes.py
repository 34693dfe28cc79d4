"""Gangs for tests, on Ray or as one process, and a look at the processes they leave."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eva_dist.calibration.controller import PointResult
from eva_dist.calibration.worker import Assignment
from eva_dist.cluster import one_process
from eva_dist.cluster.attempts import run_on_gang
from eva_dist.cluster.one_process import OneProcess
from eva_dist.cluster.place import open_place
from eva_dist.run.prepare import Prepared, assignment
from tests.observers import Ends
from tests.warm.processes import warm_workers


def assignment_of(run: Prepared, **changes: Any) -> Assignment:
    return replace(assignment(run), **changes)


def run_alone(assignment: Assignment, on_step: Any, *options: Any) -> PointResult:
    """Run a pass of one point on a gang, where it would run by its settings; what refused the point is raised."""
    observer = Ends(on_step)
    with open_place(assignment.config.cluster) as place:
        run_on_gang(assignment, observer, place, *options)
    (end,) = observer.ends.values()
    if isinstance(end, Exception):
        raise end
    return end


_started: list[Any] = []
"""Processes of gangs that did without Ray."""


def worker_pids() -> list[int]:
    """Return the processes that are gang workers now, by global rank where there is no Ray."""
    return [process.pid for process in _started if process.poll() is None] or ray_pids()


def ray_pids() -> list[int]:
    """Return the actors of gangs, from /proc."""
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


@contextmanager
def without_ray(place: type[OneProcess] = OneProcess) -> Iterator[None]:
    """Let gangs live in a place without Ray, though this process may be connected to one; they begin warm."""
    warm_workers()
    start = one_process.start_process

    def start_noted(*given: Any) -> Any:
        _started.append(start(*given))
        return _started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_process, "start_process", start_noted)
        patch.setattr("eva_dist.cluster.place.needs_no_ray", lambda cluster: True)
        patch.setattr("eva_dist.cluster.place.OneProcess", place)
        yield
    _started.clear()


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
