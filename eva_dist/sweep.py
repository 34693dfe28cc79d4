"""Many points from one stream of forwards."""

from collections.abc import Callable, Sequence

from eva_dist.controller import PointState
from eva_dist.errors import EvaDistError
from eva_dist.precompute import Outcome, precompute
from eva_dist.prepare import Prepared
from eva_dist.stopping import StopRequest

Answer = Outcome | EvaDistError


def compute_points(
    runs: Sequence[Prepared],
    on_steps: Sequence[Callable[[PointState], None]],
    started: float,
    stop: StopRequest | None = None,
    ended: Callable[[int, Answer], None] = lambda point, answer: None,
) -> list[Answer]:
    """Answer every point from the store, or compute those that are left in as few passes as can be, and publish.

    Args:
        runs: the points, from `prepare`.
        on_steps: for each point what is told its state after each of its steps.
        started: `time.perf_counter()` when the whole sweep began.
        stop: when made, a checkpoint is kept and the sweep ends.
        ended: told a point and its answer as soon as it is published, or has failed.

    Returns:
        For each point its outcome, or the error that ended it; a point that fails costs no other.

    Raises:
        PreemptedError: `stop` was made.
    """
    answers: list[Answer] = []
    for at, (run, on_step) in enumerate(zip(runs, on_steps, strict=True)):
        try:
            answers.append(precompute(run, on_step, started, stop))
        except EvaDistError as error:
            answers.append(error)
        ended(at, answers[-1])
    return answers
