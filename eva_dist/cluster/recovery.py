"""What follows a failure of the gang: a pure function of the failures so far and the room that the cluster has.

Status record -> decision, so that every case can be tested without a cluster. What a
person must mend (settings, data, layers, activations that are no numbers) never comes
here: it would fail again on any gang.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class FailureKind(Enum):
    """How the gang came to an end."""

    raised = "raised"
    lost = "lost"
    silent = "silent"
    unplaced = "unplaced"
    crowded_out = "crowded out"


class Action(Enum):
    """What to do next: build the gang again, build a smaller one, or give up."""

    retry = "retry"
    shrink = "shrink"
    stop = "stop"


@dataclass(frozen=True)
class Failure:
    """One failure of a gang.

    Attributes:
        kind: how it failed.
        step: steps that were done when it failed.
        num_workers: how many workers the gang had.
        message: what the error said.
        cause: what makes two failures the same, e.g. type and text of the exception.
    """

    kind: FailureKind
    step: int
    num_workers: int
    message: str
    cause: str = ""

    def __str__(self) -> str:
        """Return one line for a report: where, what, and the exception that was raised."""
        lines = self.message.strip().splitlines() or [self.kind.value]
        raised = f": {lines[-1][:200]}" if self.kind is FailureKind.raised and len(lines) > 1 else ""
        what = lines[0].removesuffix("; its own report:")
        return f"{self.kind.value} after step {self.step} on {self.num_workers} workers: {what}{raised}"


@dataclass(frozen=True)
class Recovery:
    """What to do, with how many workers, and why."""

    action: Action
    num_workers: int
    reason: str


def recover(failures: Sequence[Failure], room: int, wanted: int, shard_size: int, max_failures: int) -> Recovery:
    """Decide what follows the last of `failures`.

    Args:
        failures: all of this run, oldest first; at least one.
        room: how many workers the cluster can hold now.
        wanted: `cluster.num_workers`.
        shard_size: `cluster.shard_size`; a gang is a multiple of it.
        max_failures: after more than so many failures the run ends.
    """
    last = failures[-1]
    counted = len(failures) - _after_a_loss(failures)
    if counted > max_failures:
        return Recovery(Action.stop, 0, f"this is failure {counted} and cluster.max_failures={max_failures}")
    if last.kind is FailureKind.crowded_out:
        return Recovery(Action.stop, 0, "others hold what the cluster has")
    if _is_repeated(failures):
        return Recovery(Action.stop, 0, f"the same error twice at step {last.step}: a third try would end the same way")
    workers = min(wanted, room // shard_size * shard_size)
    if workers == 0:
        needs = f"the {shard_size} workers that hold the model together" if shard_size > 1 else "a worker"
        return Recovery(Action.stop, 0, f"the cluster has no room left for {needs}")
    if workers < wanted:
        return Recovery(Action.shrink, workers, f"the cluster has room for {workers} of {wanted} workers")
    return Recovery(Action.retry, workers, f"failure {counted} of at most {max_failures}")


def report(failures: Sequence[Failure], recovery: Recovery) -> str:
    """Return what a person reads when a run gives up: why, each failure, and what to do."""
    lines = "\n".join(f"  {number}. {failure}" for number, failure in enumerate(failures, 1))
    return (
        f"gave up: {recovery.reason}\n{lines}\n"
        "the same command goes on from the last checkpoint, if there is one; last error:\n"
        f"{failures[-1].message}"
    )


def _after_a_loss(failures: Sequence[Failure]) -> int:
    """Return how many failures only say once more that a node is gone, which the cluster notices late."""
    pairs = zip(failures, failures[1:], strict=False)
    return sum(a.kind is FailureKind.lost and b.kind is FailureKind.unplaced for a, b in pairs)


def _is_repeated(failures: Sequence[Failure]) -> bool:
    """Tell whether the last two failures are one exception at one step: it lies in the work, not in the cluster."""
    if len(failures) < 2:
        return False
    before, last = failures[-2:]
    same = (before.kind, before.step, before.cause) == (last.kind, last.step, last.cause)
    return same and last.kind is FailureKind.raised
