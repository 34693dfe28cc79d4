"""Show how a pass goes: one live line on a terminal, plain lines now and then elsewhere."""

import sys
import time
from typing import TextIO

from eva_dist.controller import PassState

_PLAIN_INTERVAL_S = 5.0


class Progress:
    """Call it with the state after each step; `close` ends a live line.

    Shows step, layers converged, tokens a second, elapsed and expected time. The expected
    time extrapolates how fast layers converge; `eva.max_steps` bounds it.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._started = time.monotonic()
        self._shown = float("-inf")

    def __call__(self, state: PassState) -> None:
        """Show the state, at most every few seconds where lines add up."""
        now = time.monotonic()
        last = state.decision.stop is not None
        if not (self._live or last or now - self._shown >= _PLAIN_INTERVAL_S):
            return
        self._shown = now
        text = describe(state, now - self._started)
        self._stream.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the last live line standing."""
        if self._live and self._shown > float("-inf"):
            self._stream.write("\n")
            self._stream.flush()


def describe(state: PassState, elapsed_s: float) -> str:
    """Return the progress line for a state."""
    speed = state.tokens / elapsed_s if elapsed_s > 0 else 0.0
    line = (
        f"step {state.steps}/{state.max_steps} | layers converged {state.layers_converged}/{len(state.plan.layers)} | "
        f"{speed:,.0f} tokens/s | elapsed {_clock(elapsed_s)}"
    )
    if state.decision.stop is not None:
        return line
    return f"{line} | expected {_clock(_expected(state, elapsed_s))} more"


def _expected(state: PassState, elapsed_s: float) -> float:
    """Return the seconds until all layers converge at the mean pace so far, at most those until `max_steps`."""
    pace = elapsed_s / max(state.steps, 1)
    most = pace * (state.max_steps - state.steps)
    done = _components_converged(state)
    return min(most, elapsed_s * (1 - done) / done) if done > 0 else most


def _components_converged(state: PassState) -> float:
    """Return which part of the components that the allocation asks for has converged."""
    asked = converged = 0
    for group in state.plan.groups:
        rank, cosines_K = state.group_rank(group.index), state.groups[group.index].cosines_K
        asked += rank
        converged += 0 if cosines_K is None else int((cosines_K[:rank] >= state.tau).sum())
    return converged / asked if asked else 1.0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
