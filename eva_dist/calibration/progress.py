"""Show how a pass goes: one live line on a terminal, plain lines now and then elsewhere; and write it down."""

import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from eva_dist.calibration.controller import PointState
from eva_dist.calibration.pass_state import PassState

_log = logging.getLogger(__name__)

_PLAIN_INTERVAL_S = 5.0


class Progress:
    """Call it with the state of the pass after each step; `close` ends a live line.

    Shows step, points that have ended if there are several, layers converged of the point that is furthest
    from its end, tokens a second, elapsed and expected time.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._started = time.monotonic()
        self._shown = float("-inf")
        self._unconverged: list[tuple[float, int]] = []

    def __call__(self, whole: PassState) -> None:
        """Show the state, at most every few seconds where lines add up."""
        state = whole.slowest
        if self._unconverged and state.elapsed < self._unconverged[-1][0]:
            self._unconverged.clear()  # another pass has begun, or this one anew
        self._unconverged.append((state.elapsed, len(state.plan.layers) - state.layers_converged))
        now = time.monotonic()
        last = not whole.running
        if not (self._live or last or now - self._shown >= _PLAIN_INTERVAL_S):
            return
        self._shown = now
        text = describe(whole, now - self._started, None if last else expected_seconds(state, self._unconverged))
        self._stream.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the last live line standing."""
        if self._live and self._shown > float("-inf"):
            self._stream.write("\n")
            self._stream.flush()


def describe(whole: PassState, elapsed_s: float, expected_s: float | None) -> str:
    """Return the progress line; `elapsed_s` counts from the start of the run, speed from the steps alone."""
    state = whole.slowest
    points = len(whole.points)
    ended = f"points ended {points - len(whole.running)}/{points} | " if points > 1 else ""
    speed = state.tokens / state.elapsed if state.elapsed > 0 else 0.0
    line = (
        f"step {state.steps}/{state.max_steps} | {ended}"
        f"layers converged {state.layers_converged}/{len(state.plan.layers)} | "
        f"{speed:,.0f} tokens/s | elapsed {clock(elapsed_s)}"
    )
    return line if expected_s is None else f"{line} | expected {clock(expected_s)} more"


def expected_seconds(state: PointState, unconverged: Sequence[tuple[float, int]]) -> float:
    """Return the seconds until the last layer converges, at most those until `eva.max_steps`.

    The number of unconverged layers falls about exponentially, with a long tail: the decay
    over the second half of the time so far is carried on until half a layer is left.

    Args:
        state: the state now.
        unconverged: (seconds, unconverged layers) after each step so far, now included.
    """
    elapsed, left = unconverged[-1]
    steps_since = len(unconverged) - 1  # the first point may be that of a checkpoint
    a_step = (elapsed - unconverged[0][0]) / steps_since if steps_since else elapsed / state.steps
    most = max(0.0, a_step) * (state.max_steps - state.steps)  # a pass may have begun anew
    half, left_then = next(point for point in unconverged if point[0] >= elapsed / 2)
    if left == 0 or left_then <= left:
        return 0.0 if left == 0 else most
    return min(most, max(0.0, elapsed - half) * math.log(2 * left) / math.log(left_then / left))


def clock(seconds: float) -> str:
    """Return seconds as `m:ss`, or `h:mm:ss`."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
