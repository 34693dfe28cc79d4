"""A benchmark as stages, one after the other: before each, how far it is and how long the rest will take."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from eva_dist.calibration.progress import clock


@dataclass(frozen=True)
class Stage:
    """A part of a benchmark.

    Attributes:
        name: what the progress line calls it.
        seconds: what it took on two idle cores with the benchmark's own settings; others take a multiple of it.
        work: does it.
    """

    name: str
    seconds: float
    work: Callable[[], None]


def run_stages(stages: Sequence[Stage], stream: TextIO | None = None) -> None:
    """Do each stage, and say before it how long this and those after it will take.

    What the first stages took, against what they should have taken, is carried on to those that are left.
    """
    stream = stream if stream is not None else sys.stderr
    started = time.perf_counter()
    for at, stage in enumerate(stages):
        elapsed, done = time.perf_counter() - started, sum(each.seconds for each in stages[:at])
        left = expected_seconds(elapsed, done, sum(each.seconds for each in stages[at:]))
        line = f"{at + 1}/{len(stages)} {stage.name} | elapsed {clock(elapsed)} | expected {clock(left)} more"
        print(f"[benchmark] {line}", file=stream, flush=True)
        stage.work()


def expected_seconds(elapsed: float, done: float, left: float) -> float:
    """Return what is left to do in seconds of this machine; `done` and `left` are seconds of a stage's own measure."""
    return left * elapsed / done if done else left
