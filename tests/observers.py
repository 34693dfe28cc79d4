"""Observers for tests: functions in place of methods."""

from collections.abc import Callable
from typing import Any

from eva_dist.calibration.observer import PassObserver
from eva_dist.run.observer import SweepObserver


class Watching(SweepObserver):
    """Calls functions: with each state of point 0, or with (point, state) and (point, answer) of all."""

    def __init__(
        self,
        step: Callable[[Any], None] | None = None,
        point_step: Callable[[int, Any], None] | None = None,
        answer: Callable[[int, Any], None] | None = None,
    ) -> None:
        self._step, self._point_step, self._answer = step, point_step, answer

    def on_point_step(self, point, state):
        if self._step and point == 0:
            self._step(state)
        if self._point_step:
            self._point_step(point, state)

    def on_answer(self, point, answer):
        if self._answer:
            self._answer(point, answer)


class Ends(PassObserver):
    """Calls a function with the state after each step, and keeps how each point ended."""

    def __init__(self, step: Callable[[Any], None]) -> None:
        self._step = step
        self.ends: dict[str, Any] = {}

    def on_step(self, state):
        self._step(state)

    def on_point_end(self, key, end):
        self.ends[key] = end
