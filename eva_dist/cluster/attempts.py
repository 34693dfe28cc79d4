"""A whole pass on gangs: start one, drive it, checkpoint; when it fails, build another from the checkpoint."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from eva_dist.artifact.covariance import write_covariance
from eva_dist.calibration.controller import PointEnd, PointState, StepDecision, StepReport
from eva_dist.calibration.engine import finish, run_pass
from eva_dist.calibration.observer import PassObserver
from eva_dist.calibration.pass_state import PassState, first_pass
from eva_dist.calibration.worker import Assignment
from eva_dist.cluster.checkpoint import Checkpoint, CheckpointFolder
from eva_dist.cluster.gang import Gang
from eva_dist.cluster.placement import Request
from eva_dist.cluster.recovery import Action, Failure, FailureKind, recover, report
from eva_dist.cluster.room import first_request, wait_for_room
from eva_dist.cluster.saver import Saver, kept_after
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.cluster.workers import Place
from eva_dist.errors import (
    ClusterBusyError,
    GangError,
    GangTimeoutError,
    PlacementError,
    StoreError,
    WorkerFailedError,
    WorkerLostError,
)
from eva_dist.plan import InputGroup, PassPlan

_log = logging.getLogger(__name__)

_KINDS = {
    WorkerFailedError: FailureKind.raised,
    WorkerLostError: FailureKind.lost,
    GangTimeoutError: FailureKind.silent,
    ClusterBusyError: FailureKind.crowded_out,
    PlacementError: FailureKind.unplaced,
}


def run_on_gang(
    assignment: Assignment,
    observer: PassObserver,
    place: Place,
    checkpoints: CheckpointFolder | None = None,
    stop: StopRequest | None = None,
    scratch: Path | None = None,
) -> None:
    """Run a whole pass on `cluster.num_workers` workers.

    Args:
        assignment: what to compute.
        observer: told of each step, and how each point ended.
        place: where the workers live.
        checkpoints: where to go on from, and where to write; None: nowhere.
        stop: when made, the run writes a checkpoint and ends.
        scratch: a folder for what was summed up of each point, whose results name the files; None: it is not kept.

    Raises:
        PlacementError: the place can never hold the gang.
        GangError: workers failed, were lost or silent more often than `cluster.max_failures`; every one is gone.
        PreemptedError: `stop` was made.
        EvaDistError: what the pass itself refuses (data, layers).
    """
    cluster = assignment.config.cluster
    stop = stop or StopRequest()
    request = first_request(place, cluster, stop)
    failures: list[Failure] = []
    attempt = _Attempt(assignment, observer, place, checkpoints, stop, scratch)
    while True:
        try:
            attempt.run(request)
            return
        except GangError as error:
            if stop.made:
                stop.check(attempt.kept)
            failures.append(_describe_failure(error, attempt.steps, request.num_workers))
            wait_s = cluster.wait_s if len(failures) <= cluster.max_failures else 0.0
            room = wait_for_room(place, replace(request, num_workers=cluster.num_workers), wait_s, stop)
            decision = recover(failures, room, cluster.num_workers, cluster.shard_size, cluster.max_failures)
            if decision.action is Action.stop:
                if cluster.max_failures == 0:
                    raise
                raise type(error)(report(failures, decision)) from error
            _log.warning(
                "%s\n%s with %d workers: %s", failures[-1], decision.action.value, decision.num_workers, decision.reason
            )
            request = replace(request, num_workers=decision.num_workers)


class _Attempt:
    """One gang after another, each from the last checkpoint; knows how far the last one came."""

    def __init__(
        self,
        assignment: Assignment,
        observer: PassObserver,
        place: Place,
        checkpoints: CheckpointFolder | None,
        stop: StopRequest,
        scratch: Path | None,
    ) -> None:
        self._assignment, self._observer, self._checkpoints = assignment, observer, checkpoints
        self._place, self._stop, self._scratch = place, stop, scratch
        self.steps = 0
        self._ended: set[str] = set()

    @property
    def kept(self) -> str:
        """What is not lost when the run ends now, in words."""
        found = self._checkpoints.latest() if self._checkpoints else None
        return kept_after(found.steps) if found else "nothing is kept"

    def run(self, request: Request) -> None:
        """Run the pass on a gang of its own; points that have ended before are not handed over again."""
        every = self._assignment.config.cluster.checkpoint_every
        started = time.perf_counter()
        begun = Gang.start(self._place, self._assignment, request, self._stop)
        with Saver(self._checkpoints, every) as saver, begun as gang:
            plan = self._begin_pass(gang, request)
            state = self._first_state(gang, plan)
            saver.begin_at(state.steps)
            load_seconds = time.perf_counter() - started
            collect = Collector(gang, load_seconds, request.num_workers, self._scratch)

            def after_step(state: PassState) -> None:
                self.steps = state.steps
                self._observer.on_step(state)
                self._take_ended(state, collect)
                self._keep_state(gang, saver, state)

            self._take_ended(state, collect)  # of a run that was cut off before it published them
            run_pass(state, self._make_step(gang, plan), after_step)
            with suppress(GangError):  # all that was wanted is here; the workers go anyway
                gang.call("leave")

    def _take_ended(self, state: PassState, collect: "Collector") -> None:
        """Hand over the points that have ended since last time."""
        for point, key in enumerate(state.plan.keys):
            if key not in self._ended and point not in state.running:
                end = state.errors[point] or collect(state.points[point], point)
                self._ended.add(key)
                self._observer.on_point_end(key, end)

    def _begin_pass(self, gang: Gang, request: Request) -> PassPlan:
        gang.meet()
        gang.call("load")
        probe, layout = gang.call_some(range(request.shard_size), "probe")[0]
        plan = self._assignment.plan(probe.groups, request.num_workers)
        gang.call("begin", plan, probe, layout)
        return plan

    def _first_state(self, gang: Gang, plan: PassPlan) -> PassState:
        """Return where the pass begins: at the last good checkpoint, whose state the owners then hold, or at zero."""
        points = self._assignment.begin(plan)
        found = self._checkpoints.latest() if self._checkpoints else None
        if found is not None and not found.fits(plan, points[0].accept):
            _log.warning("checkpoint %s has other points or input groups; the pass begins anew", found.folder)
            found = None
        if found is None:
            self.steps = 0
            return first_pass(plan, points)
        _restore_owners(gang, plan, found)
        self.steps = found.steps
        _log.warning("going on after step %d, from %s", found.steps, found.folder)
        return found.state(plan, points)

    def _make_step(self, gang: Gang, plan: PassPlan) -> Callable[[StepDecision], Sequence[StepReport]]:
        owners = {group.index: group.owner for group in plan.groups}

        def step(decision: StepDecision) -> Sequence[StepReport]:
            nonlocal owners
            gang.move(owners, decision.owners)
            owners = dict(decision.owners)
            return gang.call("step", decision)

        return step

    def _keep_state(self, gang: Gang, saver: Saver, state: PassState) -> None:
        if not state.running:
            return
        if self._stop.made:
            self._stop.check(saver.save_now(gang, state))
        saver.save_if_due(gang, state)


@dataclass(frozen=True)
class Collector:
    """Brings a point's components to the driver, and into `scratch` what was summed up, if that is to be kept."""

    gang: Gang
    load_seconds: float
    world_size: int
    scratch: Path | None = None

    def __call__(self, state: PointState, point: int) -> PointEnd:
        """Return the result of a point that has ended, or why it cannot be had."""
        parts = self.gang.call("components", point)
        components = {group: found for part in parts for group, found in part.items()}
        seconds = {**state.seconds, "load": self.load_seconds + state.seconds.get("load", 0.0)}
        holders = {group: rank for rank, part in enumerate(parts) for group in part}
        try:
            covariance = self._write_covariance(state, point, holders)
        except OSError as error:
            return StoreError(
                f"covariance.safetensors cannot be written to {self.scratch} ({error}); make room there, let TMPDIR "
                "name a folder that has it, or set solver.keep_covariance=false"
            )
        return finish(replace(state, seconds=seconds), components, self.world_size, covariance)

    def _write_covariance(self, state: PointState, point: int, holders: Mapping[int, int]) -> Path | None:
        """Write what was summed up of a point, one group at a time: a driver holds no more."""
        if self.scratch is None:
            return None

        def fetch(group: InputGroup) -> Mapping[str, Tensor]:
            found: Mapping[str, Tensor] = self.gang.call_one(holders[group.index], "covariance", point, group.index)
            return found

        path = self.scratch / f"point-{point:04d}.safetensors"
        write_covariance(path, [group for group in state.plan.groups if group.index in holders], fetch)
        return path


def _restore_owners(gang: Gang, plan: PassPlan, checkpoint: Checkpoint) -> None:
    """Hand each input group's states to its owner, one group at a time: a driver holds no more."""
    points = checkpoint.points(plan)
    for group in plan.groups:
        if (tensors := checkpoint.tensors(group)) is not None:
            gang.call_one(group.owner, "restore", group.index, tensors, points)


def _describe_failure(error: GangError, steps: int, num_workers: int) -> Failure:
    message = str(error)
    cause = message.strip().splitlines()[-1] if message.strip() else type(error).__name__
    kind = next((kind for known, kind in _KINDS.items() if isinstance(error, known)), FailureKind.raised)
    return Failure(kind, steps, num_workers, message, cause)
