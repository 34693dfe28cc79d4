"""The gang: all workers of one run, started together, driven in step, and gone together.

Every call goes to all workers and has a timeout. The first error, a lost worker or a
worker that gives no sign of life ends the gang: it is killed whole (a worker that raised
leaves its peers inside a collective, so there is nothing to save). What follows is for
`attempts.py` to decide.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from eva_dist.calibration.worker import Assignment
from eva_dist.cluster.placement import Request
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.cluster.workers import CallError, Place, Workers
from eva_dist.errors import EvaDistError, GangTimeoutError, WorkerFailedError, WorkerLostError

_GRACE_S = 2.0
"""How long to wait, after a first error, for the workers that failed because of it or before it."""
_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 5.0
_NOTHING_LOST = ("address", "join", "load", "probe", "begin", "restore")
"""Calls that a request to stop may leave at once; after the others a checkpoint is worth its while."""
_STEP_MAY_TAKE_S = 20.0
"""After a request to stop: pods have 30 s by default, and the processes have to go too."""


@dataclass(frozen=True)
class Gang:
    """The workers in order of `global_rank`."""

    workers: Workers
    timeout_s: float
    heartbeat_s: float
    stop: StopRequest
    _heard: dict[int, float] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def start(cls, place: Place, assignment: Assignment, request: Request, stop: StopRequest) -> Iterator["Gang"]:
        """Start the workers; they are gone when the context closes, however it closes."""
        cluster = assignment.config.cluster
        with place.start(assignment, request, stop) as workers:
            yield cls(workers, cluster.timeout_s, cluster.heartbeat_s, stop)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on every worker and return their answers by `global_rank`."""
        return self.call_some(range(len(self.workers)), method, *arguments)

    def meet(self) -> None:
        """Let the workers form their process group; from now on each is expected to give signs of life."""
        self.call("join", self.call_one(0, "address"))
        self.call("status")
        self._heard.update(dict.fromkeys(range(len(self.workers)), time.monotonic()))

    def call_one(self, global_rank: int, method: str, *arguments: Any) -> Any:
        """Call a method on one worker and return its answer."""
        return self.call_some([global_rank], method, *arguments)[0]

    def call_some(self, global_ranks: Sequence[int], method: str, *arguments: Any) -> list[Any]:
        """Call a method on some workers and return their answers in that order."""
        return self._wait_for_all(method, {rank: self.workers.ask(rank, method, *arguments) for rank in global_ranks})

    def move(self, owners: Mapping[int, int], new_owners: Mapping[int, int]) -> None:
        """Hand the SVDs of groups that change their owner to the new one."""
        # by way of the driver: owners change seldom, and it needs no collective that could hang
        moved = tuple(group for group, owner in new_owners.items() if owners[group] != owner)
        if not moved:
            return
        given = {group: svd for part in self.call("give", moved) for group, svd in part.items()}
        for owner in sorted({new_owners[group] for group in given}):
            self.call_one(owner, "receive", {g: svd for g, svd in given.items() if new_owners[g] == owner})

    def _wait_for_all(self, method: str, pending: dict[int, Any]) -> list[Any]:
        rank_of = {asked: global_rank for global_rank, asked in pending.items()}
        started = time.monotonic()
        deadline = started + self.timeout_s
        answers: dict[int, Any] = {}
        failures: dict[int, CallError] = {}
        waiting = list(rank_of)
        signs = _Signs(self.workers, self._heard, self.heartbeat_s)
        while waiting and time.monotonic() < deadline:
            left = max(0.0, min(_LOOK_EVERY_S, deadline - time.monotonic()))
            ready = self.workers.wait(waiting, left)
            waiting = [asked for asked in waiting if asked not in ready]
            for asked in ready:
                try:
                    answers[rank_of[asked]] = self.workers.answer(asked)
                except CallError as error:
                    failures[rank_of[asked]] = error
                    # its peers are stuck in a collective: a moment for other causes to show, then the end
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
            # nobody has answered for a while: are they alive, and has somebody asked us to end?
            if not ready and not failures:
                signs.look([rank_of[asked] for asked in waiting], method)
                if method in _NOTHING_LOST:
                    self.stop.check()
                elif self.stop.waited_s > _STEP_MAY_TAKE_S:
                    self.stop.check(
                        f"{method} did not end within {_STEP_MAY_TAKE_S:.0f} s; an older checkpoint is kept"
                    )
        if failures:
            raise _choose_failure(method, failures)
        if waiting:
            late = sorted(rank_of[asked] for asked in waiting)
            raise GangTimeoutError(
                f"global_rank {', '.join(map(str, late))} did not answer {method} in "
                f"cluster.timeout_s={self.timeout_s:g}; {signs.describe(late)}; look at its log, or raise "
                "cluster.timeout_s"
            )
        return [answers[global_rank] for global_rank in pending]


class _Signs:
    """Signs of life of workers that keep the driver waiting: `status` is answered by a thread of its own.

    Only workers that have met are expected to answer: one that is being started cannot yet.
    """

    def __init__(self, workers: Workers, heard: dict[int, float], heartbeat_s: float) -> None:
        self._workers, self._heard, self._heartbeat_s = workers, heard, heartbeat_s
        self._asked: dict[int, Any] = {}
        self._last: dict[int, Any] = {}
        self._next = 0.0
        now = time.monotonic()
        self._heard.update(dict.fromkeys(self._heard, now))

    def look(self, global_ranks: Sequence[int], method: str) -> None:
        """Take in answers, ask again, and raise `GangTimeoutError` for a worker that has fallen silent."""
        self._take_answers()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + min(_ASK_EVERY_S, self._heartbeat_s / 3)
            for rank in global_ranks:
                if rank not in self._asked:
                    self._asked[rank] = self._workers.ask(rank, "status")
        silent = [rank for rank in global_ranks if now - self._heard.get(rank, now) > self._heartbeat_s]
        if silent:
            raise GangTimeoutError(
                f"global_rank {', '.join(map(str, silent))} gave no sign of life in {method} for "
                f"cluster.heartbeat_s={self._heartbeat_s:g} ({self.describe(silent)}); its process stands "
                "still, or its node is lost"
            )

    def describe(self, global_ranks: Sequence[int]) -> str:
        """Return what is known of these workers."""
        self._take_answers()
        return ", ".join(str(self._last.get(rank, f"global_rank {rank} is silent")) for rank in global_ranks)

    def _take_answers(self) -> None:
        for rank, asked in list(self._asked.items()):
            if self._workers.wait([asked], 0.0):
                del self._asked[rank]
                with suppress(CallError):  # it died: the call that is waited for will say so
                    self._last[rank] = self._workers.answer(asked)
                    if rank in self._heard:
                        self._heard[rank] = time.monotonic()


def _choose_failure(method: str, failures: dict[int, CallError]) -> EvaDistError:
    """Return the error to raise: the cause, rather than the peers' broken connections that follow from it."""
    global_rank, error = min(failures.items(), key=lambda item: (_blame_order(item[1]), item[0]))
    if isinstance(error.cause, EvaDistError):
        return error.cause
    others = (
        f" (then global_rank {', '.join(str(r) for r in sorted(failures) if r != global_rank)})"
        if len(failures) > 1
        else ""
    )
    kind, what = (WorkerLostError, "died") if error.is_lost else (WorkerFailedError, "failed")
    return kind(f"global_rank {global_rank} {what} in {method}{others}; its own report:\n{error}")


def _blame_order(error: CallError) -> int:
    """Order failures by how likely they are the first: our own errors, deaths, others, broken connections."""
    if isinstance(error.cause, EvaDistError):
        return 0
    if error.is_lost:
        return 1
    text = str(error).lower()
    return 3 if any(word in text for word in ("gloo", "nccl", "connection closed")) else 2
