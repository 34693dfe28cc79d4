"""The story of one worker's pass.

A worker holds a model, a stream of minibatches and an exchange. It is told one thing at
a time, a `StepDecision`, and answers with what it saw, a `StepReport`:

    1. take this worker's share of the step's samples,
    2. forward them, with the inputs of the active layers tapped,
    3. bring the token rows of all workers together,
    4. update the SVD of each input group that this worker owns,
    5. report explained variance and cosines.

Who decides, and how the message travels, is not its business: in process it is a plain
loop (`run_pass` below), on a cluster a driver and Ray. There is no ray in this file.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eva_dist.config import SolverConfig, SolverName
from eva_dist.controller import GroupReport, PassResult, PassState, StepDecision, StepReport, advance, first_state
from eva_dist.distributed.exchange import RowExchange
from eva_dist.modeling.taps import SelectRows, collect_groups, collect_rows, concatenate
from eva_dist.numerics.components import Components
from eva_dist.numerics.convergence import component_cosines
from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.numerics.incremental import IncrementalTracker
from eva_dist.numerics.subspace import SubspaceTracker
from eva_dist.numerics.tracker import Tracker
from eva_dist.plan import InputGroup, Plan


class StepData(Protocol):
    """One worker's share of one step: its minibatches, and where the data stands afterwards."""

    @property
    def minibatches(self) -> Sequence[Any]:
        """What the worker forwards, one after the other; there may be none."""

    @property
    def epoch(self) -> int:
        """How often the data has been used up when this step ends."""

    @property
    def exhausted(self) -> bool:
        """Whether there was nothing left for this step, and never will be."""


class Forward(Protocol):
    """How a model meets its minibatches; the two faces (job, drop-in) differ only here."""

    def run(self, model: nn.Module, minibatch: Any) -> None:
        """Forward one minibatch, with nothing computed that no tap needs."""

    def select(self, minibatch: Any) -> SelectRows:
        """Return the function that picks this minibatch's token rows from a layer's input."""


@dataclass(frozen=True)
class GroupSvd:
    """An input group's tracker state and the components as of its last update."""

    state: Any
    components: Components


@dataclass(frozen=True)
class Worker:
    """What a worker needs for a pass; `names` maps layer names of the plan to those in `model`."""

    model: nn.Module
    plan: Plan
    forward: Forward
    exchange: RowExchange
    trackers: Mapping[int, Tracker[Any]]
    names: Mapping[str, str]
    dtype: torch.dtype
    device: torch.device


def find_input_groups(
    model: nn.Module, layers: Sequence[str], forward: Forward, minibatches: Iterable[Any]
) -> list[list[str]]:
    """Partition `layers` (names in `model`) by the input they receive.

    Forwards one minibatch, and the next ones only while some layer has seen no token
    (everything masked, an expert that nothing was routed to).
    """
    with torch.no_grad(), collect_groups(model, layers) as groups:
        for minibatch in minibatches:
            groups.select = forward.select(minibatch)
            forward.run(model, minibatch)
            if groups.complete:
                break
    return groups.names()


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


def run_step(
    worker: Worker, decision: StepDecision, data: StepData, svds: dict[int, GroupSvd]
) -> tuple[StepReport, dict[int, GroupSvd]]:
    """Run one step and return the report, and the SVDs with those that this step updated replaced."""
    clock = _Clock()
    with clock.phase("forward"):
        rows, tokens = _forward_step(worker, decision, data)
    owners = {group.index: group.owner for group in worker.plan.groups}
    with clock.phase("exchange"):
        owned = worker.exchange.bring(rows, owners)
    svds = dict(svds)
    reports = []
    with clock.phase("svd"):
        for group, x_TD in owned.items():
            report, svd = _update_group(worker.trackers[group], group, x_TD, svds.get(group))
            reports.append(report)
            if svd is not None:
                svds[group] = svd
    return StepReport(tuple(reports), tokens, data.epoch, clock.seconds, data.exhausted), svds


def run_pass(
    plan: Plan,
    tau: float,
    max_steps: int,
    step: Callable[[StepDecision], Sequence[StepReport]],
    on_step: Callable[[PassState], None] = lambda state: None,
    accept: bool = False,
) -> tuple[PassState, float]:
    """Drive steps until every layer has converged, `max_steps` is reached or the data is gone.

    Args:
        plan: what to compute.
        tau: cosine at which a component counts as converged.
        max_steps: most SVD updates.
        step: carries a decision to every worker and brings back their reports.
        on_step: told the state after each step (progress).
        accept: what did not converge will be taken as it is.

    Returns:
        The last state, and the seconds from the first forward to the last allocation.
    """
    started = time.perf_counter()
    state = first_state(plan, tau, max_steps, accept)
    while state.decision.stop is None:
        step_started = time.perf_counter()
        reports = step(state.decision)
        state = advance(state, reports, time.perf_counter() - step_started)
        on_step(state)
    return state, time.perf_counter() - started


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


def finish(state: PassState, components: Mapping[int, Components], seconds: float) -> PassResult:
    """Merge what the workers own into the result of the pass; a group that was never updated has no component."""
    merged = {
        group.index: components.get(group.index)
        or Components(torch.empty(0, group.in_features), torch.empty(0), torch.empty(0))
        for group in state.plan.groups
    }
    return PassResult(state, merged, seconds)


def _forward_step(worker: Worker, decision: StepDecision, data: StepData) -> tuple[dict[int, Tensor], int]:
    """Forward this worker's minibatches; return its token rows by active group, and how many there were at most."""
    taps = {group: worker.plan.groups[group] for group in decision.active}
    names = {group: worker.names[taps[group].tap] for group in taps}
    calls: dict[int, list[Tensor]] = defaultdict(list)
    with torch.no_grad():
        for minibatch in data.minibatches:
            with collect_rows(worker.model, names.values(), worker.forward.select(minibatch)) as collected:
                worker.forward.run(worker.model, minibatch)
            for group, name in names.items():
                calls[group] += collected[name]
    rows = {group: concatenate(calls[group], taps[group].in_features, worker.dtype, worker.device) for group in taps}
    return rows, max((x.shape[0] for x in rows.values()), default=0)


def _update_group(
    tracker: Tracker[Any], group: int, x_TD: Tensor, svd: GroupSvd | None
) -> tuple[GroupReport, GroupSvd | None]:
    """Update one SVD; fewer rows than components leave it as it was."""
    if x_TD.shape[0] < tracker.n_components:
        return GroupReport(group, x_TD.shape[0]), svd
    if not bool(torch.isfinite(x_TD).all()):
        return GroupReport(group, x_TD.shape[0], finite=False), svd
    # a caller's autocast must not reach the statistics
    with torch.no_grad(), torch.autocast(x_TD.device.type, enabled=False):
        state = tracker.update(svd.state if svd else None, x_TD)
        components = tracker.components(state)
        cosines_K = component_cosines(components.v_KD, svd.components.v_KD) if svd else None
    report = GroupReport(group, x_TD.shape[0], components.explained_variance_ratio_K.cpu(), cosines_K)
    return report, GroupSvd(state, components)


class _Clock:
    """Adds up wall-clock seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
