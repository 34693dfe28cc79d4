"""A request to end in good order, from outside: SIGTERM, as schedulers and `ray job stop` send it."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from eva_dist.errors import PreemptedError


class StopRequest:
    """Says whether the run has been asked to end; set once, never taken back.

    Attributes:
        at_once: nothing is worth keeping yet: whoever is asked by a signal need not wait for `check`.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._made_at = 0.0
        self.at_once = False

    @property
    def made(self) -> bool:
        """Whether the run has been asked to end."""
        return self._event.is_set()

    def make(self) -> None:
        """Ask the run to end."""
        self._made_at = self._made_at or time.monotonic()
        self._event.set()

    @property
    def waited_s(self) -> float:
        """Seconds since the run was asked to end; 0 if it was not."""
        return time.monotonic() - self._made_at if self.made else 0.0

    def check(self, kept: str = "no step was done since the last checkpoint, if there is one") -> None:
        """Raise `PreemptedError` if the run has been asked to end; `kept` says what is not lost."""
        if self.made:
            raise PreemptedError(f"asked to end (SIGTERM): {kept}")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """While open, nothing is worth keeping: a signal ends what runs at once, an earlier request does so now."""
        self.at_once = True
        try:
            self.check("nothing had begun")
            yield
        finally:
            self.at_once = False


@contextmanager
def on_sigterm(stop: StopRequest) -> Iterator[None]:
    """While open, SIGTERM makes the request; the handler that was there comes back. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        stop.make()
        if stop.at_once:
            stop.check("nothing had begun")

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
