"""What the fault tests share: a run that is long enough to be hurt, its truth, and the table of what happened."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import eva_dist
from tests.warm.processes import WarmJob

JOB = Path(__file__).parents[2] / "jobs" / "precompute.py"


@dataclass
class Table:
    """Rows of (fault, detected in, lost steps, outcome), printed when the tests are done."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, fault: str, detected_s: float | None, lost_steps: int | None, outcome: str) -> None:
        seconds = "-" if detected_s is None else f"{detected_s:.1f} s" if detected_s >= 0.1 else "< 0.1 s"
        self.rows.append((fault, seconds, "-" if lost_steps is None else str(lost_steps), outcome))

    def __str__(self) -> str:
        head = ("fault", "detected in", "lost steps", "outcome")
        lines = [head, ("---",) * 4, *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def artifact_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of the tensors of an artifact."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("eva_state_dict.safetensors", "adapter_model.safetensors")
    }


def least_cosine(a: str, b: str) -> float:
    """Return the lowest cosine of any component of two artifacts, whose ranks must agree."""
    first, second = eva_dist.load_eva_state_dict(a), eva_dist.load_eva_state_dict(b)
    assert {name: rows.shape for name, rows in first.items()} == {name: rows.shape for name, rows in second.items()}
    return min(float(torch.cosine_similarity(first[n], second[n]).min()) for n in first if len(first[n]))


def half_written(store: Path) -> list[str]:
    """Return what should not be in a store: files that are being written."""
    return [str(p) for p in store.rglob(".incoming*") if p.is_file() or any(p.iterdir())]


@contextmanager
def job(overrides: list[str], folder: Path, **environment: str) -> Iterator[WarmJob]:
    """Run jobs/precompute.py in a session of its own, from `folder`; whatever happens, nothing of it is left."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w") as log:
        process = WarmJob([str(JOB), *overrides], folder, log.fileno(), {**os.environ, **environment})
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.close()


def progress_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of progress.jsonl of the newest run in `folder`."""
    files = sorted(folder.rglob("progress.jsonl"), key=lambda p: p.stat().st_mtime)
    return [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []


def wait_until(happened: Callable[[], bool], seconds: float) -> float:
    """Return the seconds until `happened()`; an assertion after `seconds`."""
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < seconds, f"it did not happen within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - started


def processes_of(session: int) -> list[str]:
    """Return the command lines of processes that belong to a session or descend from it, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if int(stat[3]) == session and stat[0] != "Z":
                found.append(command)
    return found
