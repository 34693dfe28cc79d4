"""Seconds by phase."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Adds up seconds by phase, of the wall and of the processor; a phase inside another one is not the outer one's."""

    def __init__(self, on_phase: Callable[[str], None]) -> None:
        self._on_phase = on_phase
        self._phases: list[str] = []
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}
        self._inside = (0.0, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """While open, time is this phase's."""
        outer, self._inside = self._inside, (0.0, 0.0)
        self._enter_phase(name)
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = time.perf_counter() - wall, time.process_time() - processor
            self.seconds[name] = self.seconds.get(name, 0.0) + spent[0] - self._inside[0]
            self.processor_seconds[name] = self.processor_seconds.get(name, 0.0) + spent[1] - self._inside[1]
            self._inside = outer[0] + spent[0], outer[1] + spent[1]
            self._leave_phase()

    def _enter_phase(self, name: str) -> None:
        self._phases.append(name)
        self._on_phase(name)

    def _leave_phase(self) -> None:
        self._phases.pop()
        if self._phases:
            self._on_phase(self._phases[-1])
