"""One run, from what `prepare` found to a published artifact: a sweep of a single point."""

from collections.abc import Callable

from eva_dist.controller import PointState
from eva_dist.outcome import Outcome
from eva_dist.points import PassState
from eva_dist.prepare import Prepared
from eva_dist.stopping import StopRequest
from eva_dist.sweep import compute_points


def precompute(
    run: Prepared,
    on_step: Callable[[PointState], None],
    started: float,
    stop: StopRequest | None = None,
    on_pass: Callable[[PassState], None] = lambda state: None,
) -> Outcome:
    """Answer from the store, or compute on a gang and publish.

    Of several drivers in one cluster that ask for this run alone, one computes and the others wait for what it
    publishes. A sweep that has it among its points does not know of them: both compute, the first one publishes.

    Args:
        run: from `prepare`.
        on_step: told the state of the point after each step (records).
        started: `time.perf_counter()` when the whole run began.
        stop: when made, the run keeps a checkpoint and ends.
        on_pass: told the state of the pass after each step (progress).

    Raises:
        NotConvergedError: `eva.max_steps` reached, and `eva.on_max_steps=error`.
        PreemptedError: `stop` was made.
        GangError, StoreError and what the pass refuses; nothing half-done is left.
    """
    (answer,) = compute_points([run], [on_step], started, stop, on_pass=on_pass)
    if isinstance(answer, Outcome):
        return answer
    raise answer
