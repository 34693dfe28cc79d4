"""The story of one worker's pass.

A worker holds a model, a feed of token rows and an exchange. It is told one thing at a
time, a `StepDecision`, and answers with what it saw, a `StepReport`:

    1. forward its share of the step's samples, with the inputs of the active layers tapped,
    2. bring the token rows of all workers together, each to the owner of its input group,
    3. update the SVD of each input group that this worker owns,
    4. report explained variance and cosines.

A lone worker has nothing to bring together: it updates a group's SVD as soon as the rows of
its step are complete, in the middle of the forward (on an accelerator some layers at a time,
in batched kernels). Forward and SVD are not run at once: the next step's active groups are
only known when this one's SVDs are; what keeps a device busy is that a forward may serve
several steps (`feed.py`).

Seconds by phase are the host's: work that an accelerator is still doing shows in the phase
that waits for it.

Who decides, and how the message travels, is not its business: in process it is a plain
loop (`run_pass` below), on a cluster a driver and Ray. There is no ray in this file.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eva_dist.config import SolverConfig, SolverName
from eva_dist.controller import (
    GroupReport,
    PointResult,
    PointState,
    StepDecision,
    StepReport,
    add_seconds,
    advance,
)
from eva_dist.distributed.exchange import RowExchange
from eva_dist.feed import RowFeed
from eva_dist.numerics.components import Components
from eva_dist.numerics.convergence import component_cosines
from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.numerics.incremental import IncrementalTracker
from eva_dist.numerics.records import from_tensors, map_tensors
from eva_dist.numerics.subspace import SubspaceTracker
from eva_dist.numerics.tracker import Tracker
from eva_dist.plan import InputGroup, Plan

_ROWS_AT_ONCE = {"cuda": 512 * 2**20}
"""Bytes of token rows, in the model's dtype, that an accelerator updates together; a CPU takes group after group."""


@dataclass(frozen=True)
class GroupSvd:
    """An input group's tracker state and the components as of its last update."""

    state: Any
    components: Components


@dataclass(frozen=True)
class Worker:
    """What a worker needs for a pass; `on_phase` is told what it is about to do: forward, exchange, svd."""

    plan: Plan
    feed: RowFeed
    exchange: RowExchange
    trackers: Mapping[int, Tracker[Any]]
    on_phase: Callable[[str], None] = lambda phase: None


def make_tracker(solver: SolverConfig, n_components: int) -> Tracker[Any]:
    """Return the tracker that these settings describe."""
    options = {
        key: value
        for key, value in (("oversampling", solver.oversampling), ("power_steps", solver.power_steps))
        if value is not None
    }
    if solver.name is SolverName.covariance:
        return CovarianceTracker(n_components)
    if solver.name is SolverName.incremental:
        return IncrementalTracker(n_components, seed=solver.seed, **options)
    return SubspaceTracker(n_components, seed=solver.seed, **options)


def make_trackers(solver: SolverConfig, groups: Sequence[InputGroup]) -> dict[int, Tracker[Any]]:
    """Return a tracker for each input group, by group index."""
    return {group.index: make_tracker(solver, group.n_components) for group in groups}


def run_step(worker: Worker, decision: StepDecision, svds: dict[int, GroupSvd]) -> StepReport:
    """Run one step and return the report.

    `svds` is updated in place, group by group: a second generation would double its memory.
    """
    clock = _Clock(worker.on_phase)
    updates = _Updates(worker, svds, clock)
    mine: dict[int, Tensor] = {}
    tokens = 0

    def take(group: int, x_TD: Tensor) -> None:
        nonlocal tokens
        tokens = max(tokens, len(x_TD))
        if worker.exchange.is_local:
            updates.add(group, x_TD)
        else:
            mine[group] = x_TD

    sent_before = worker.exchange.sent_bytes
    with clock.phase("forward"):
        epoch, exhausted = worker.feed.rows(decision.step, decision.active, take)
    if not worker.exchange.is_local:
        with clock.phase("exchange"):
            owned = worker.exchange.bring({group: mine.pop(group) for group in decision.active}, decision.owners)
        for group in list(owned):
            updates.add(group, owned.pop(group))
    updates.flush()
    return StepReport(
        groups=tuple(sorted(updates.reports, key=lambda report: report.group)),
        tokens=tokens,
        epoch=epoch,
        seconds=clock.seconds,
        exhausted=exhausted,
        sent_bytes=worker.exchange.sent_bytes - sent_before,
        svd_processor_seconds=clock.processor_seconds.get("svd", 0.0),
    )


def run_pass(
    state: PointState,
    step: Callable[[StepDecision], Sequence[StepReport]],
    on_step: Callable[[PointState], None] = lambda state: None,
) -> PointState:
    """Drive steps until every layer has converged, `max_steps` is reached or the data is gone.

    Args:
        state: where to begin: `controller.first_state`, or what a checkpoint holds.
        step: carries a decision to every worker and brings back their reports.
        on_step: told the state after each step (progress).

    Returns:
        The last state; its `pass_seconds` count from the first forward to the last allocation.
    """
    before, started = state.pass_seconds, time.perf_counter()
    while state.decision.stop is None:
        step_started = time.perf_counter()
        reports = step(state.decision)
        reported = time.perf_counter()
        state = advance(state, reports, reported - step_started)
        decided = time.perf_counter()
        seconds = add_seconds(state.seconds, {"decision": decided - reported})
        state = replace(state, seconds=seconds, pass_seconds=before + decided - started)
        on_step(state)
    return state


def collect_components(svds: Mapping[int, GroupSvd]) -> dict[int, Components]:
    """Return the components that this worker owns, on the CPU, by group index."""
    return {
        group: Components(
            svd.components.v_KD.cpu(),
            svd.components.singular_values_K.cpu(),
            svd.components.explained_variance_ratio_K.cpu(),
        )
        for group, svd in svds.items()
    }


def give(svds: dict[int, GroupSvd], groups: Iterable[int]) -> dict[int, GroupSvd]:
    """Take the SVDs of these groups out of `svds`, those that are there, to the CPU, on their way to a new owner."""
    return {group: map_tensors(svds.pop(group), Tensor.cpu) for group in groups if group in svds}


def receive(svds: dict[int, GroupSvd], given: Mapping[int, GroupSvd], device: torch.device) -> None:
    """Keep these SVDs in `svds` from now on, on this device."""
    svds.update({group: map_tensors(svd, lambda tensor: tensor.to(device)) for group, svd in given.items()})


def restore(worker: Worker, group: int, tensors: Mapping[str, Tensor]) -> GroupSvd:
    """Return the SVD of a group whose tracker state a checkpoint holds, on the worker's device."""
    tracker, device = worker.trackers[group], worker.feed.device
    state: Any = from_tensors(tracker.state_type, {name: tensor.to(device) for name, tensor in tensors.items()})
    return GroupSvd(state, tracker.components(state))


def finish(state: PointState, components: Mapping[int, Components], world_size: int = 1) -> PointResult:
    """Merge what the workers own into the result of the pass; a group that was never updated has no component."""
    merged = {
        group.index: components.get(group.index)
        or Components(torch.empty(0, group.in_features), torch.empty(0), torch.empty(0))
        for group in state.plan.groups
    }
    return PointResult(state, merged, world_size)


class _Updates:
    """Updates the SVDs of groups as their rows arrive: several at a time on an accelerator, else one by one."""

    def __init__(self, worker: Worker, svds: dict[int, GroupSvd], clock: "_Clock") -> None:
        self.svds = svds
        self.reports: list[GroupReport] = []
        self._trackers = worker.trackers
        self._clock = clock
        self._waiting: dict[int, Tensor] = {}
        self._bytes = 0

    def add(self, group: int, x_TD: Tensor) -> None:
        """Take a group's rows of this step."""
        self._waiting[group] = x_TD
        self._bytes += x_TD.nbytes
        if self._bytes >= rows_at_once(x_TD.device):
            self.flush()

    def flush(self) -> None:
        """Update what is waiting."""
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        with self._clock.phase("svd"):
            ready: dict[Tracker[Any], dict[int, Tensor]] = defaultdict(dict)
            for group, x_TD in _finite(waiting, self.reports).items():
                if len(x_TD) < self._trackers[group].n_components:
                    self.reports.append(GroupReport(group, len(x_TD)))  # too few rows: the SVD stays as it was
                else:
                    ready[self._trackers[group]][group] = x_TD
            for tracker, rows in ready.items():
                self._update(tracker, rows)

    def _update(self, tracker: Tracker[Any], rows: Mapping[int, Tensor]) -> None:
        before = {group: self.svds.get(group) for group in rows}
        device = next(iter(rows.values())).device
        # neither a caller's autocast nor a TF32 setting may reach the statistics
        with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_float32():
            states = tracker.update_many([svd.state if svd else None for svd in before.values()], list(rows.values()))
            after = {g: GroupSvd(s, tracker.components(s)) for g, s in zip(rows, states, strict=True)}
            found = [
                (
                    svd.components.explained_variance_ratio_K.double(),
                    component_cosines(svd.components.v_KD, known.components.v_KD) if known else None,
                )
                for svd, known in zip(after.values(), before.values(), strict=True)
            ]
        self.svds |= after
        on_cpu = iter(_to_cpu([t for pair in found for t in pair if t is not None]))
        for (group, x_TD), (_, cosines_K) in zip(rows.items(), found, strict=True):
            ratios_K = next(on_cpu)
            self.reports.append(
                GroupReport(group, len(x_TD), ratios_K, next(on_cpu) if cosines_K is not None else None)
            )


@contextmanager
def _full_float32() -> Iterator[None]:
    """While open, float32 products are computed in float32."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rows_at_once(device: torch.device) -> int:
    """Return how many bytes of rows are updated together; 0: each group as soon as its rows are there."""
    return _ROWS_AT_ONCE.get(device.type, 0)


def _finite(rows: Mapping[int, Tensor], reports: list[GroupReport]) -> dict[int, Tensor]:
    """Return the rows that hold neither NaN nor infinity, and report the others; one synchronisation for all."""
    if not rows:
        return {}
    finite = torch.stack([x_TD.sum(dtype=torch.float32) for x_TD in rows.values()]).isfinite().tolist()
    reports += [
        GroupReport(g, len(x), finite=False) for (g, x), fine in zip(rows.items(), finite, strict=True) if not fine
    ]
    return {group: x_TD for (group, x_TD), fine in zip(rows.items(), finite, strict=True) if fine}


def _to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bring vectors of one dtype to the CPU in one transfer."""
    joined = torch.cat(list(tensors)).cpu()
    return list(joined.split([len(t) for t in tensors]))


class _Clock:
    """Adds up seconds by phase, of the wall and of the processor; a phase inside another one is not the outer one's."""

    def __init__(self, on_phase: Callable[[str], None]) -> None:
        self._on_phase = on_phase
        self._phases: list[str] = []
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}
        self._inside = (0.0, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        outer, self._inside = self._inside, (0.0, 0.0)
        self._enter(name)
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = time.perf_counter() - wall, time.process_time() - processor
            self.seconds[name] = self.seconds.get(name, 0.0) + spent[0] - self._inside[0]
            self.processor_seconds[name] = self.processor_seconds.get(name, 0.0) + spent[1] - self._inside[1]
            self._inside = outer[0] + spent[0], outer[1] + spent[1]
            self._leave()

    def _enter(self, name: str) -> None:
        self._phases.append(name)
        self._on_phase(name)

    def _leave(self) -> None:
        self._phases.pop()
        if self._phases:
            self._on_phase(self._phases[-1])
