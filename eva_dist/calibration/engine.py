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

Where the points of a pass differ in their component counts or in when they froze a group, each
goes on from an SVD of its own; as long as their SVDs are one and the same, one update serves them all.

Who decides, and how the message travels, is not its business: in process it is a plain
loop (`run_pass` below), on a cluster a driver and Ray. There is no ray in this file.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eva_dist.calibration.clock import Clock
from eva_dist.calibration.controller import (
    PointResult,
    PointState,
    StepDecision,
    StepReport,
)
from eva_dist.calibration.group_svds import Svds, Trackers, Updates
from eva_dist.calibration.layer_inputs import RowFeed
from eva_dist.calibration.pass_state import PassState, add_times, advance_pass
from eva_dist.distributed.exchange import RowExchange
from eva_dist.numerics.components import Components
from eva_dist.plan import PassPlan


@dataclass(frozen=True)
class PassContext:
    """What a worker needs for a pass.

    `trackers` has each group's by point; `on_phase` is told what the worker is about to do: forward, exchange, svd.
    """

    plan: PassPlan
    feed: RowFeed
    exchange: RowExchange
    trackers: Trackers
    on_phase: Callable[[str], None] = lambda phase: None


def run_step(context: PassContext, decision: StepDecision, svds: Svds) -> StepReport:
    """Run one step and return the report.

    `svds` is updated in place, group by group: a second generation would double its memory.
    """
    clock = Clock(context.on_phase)
    updates = Updates(context.plan, context.trackers, decision, svds, clock)
    mine: dict[int, Tensor] = {}
    tokens = {point: 0 for group in decision.active for point in decision.points_of(group)}

    def take(group: int, x_TD: Tensor) -> None:
        for point in decision.points_of(group):
            tokens[point] = max(tokens[point], len(x_TD))
        # alone, the rows are consumed here, in the hook: they need not outlive the layer's forward
        if context.exchange.is_local:
            updates.add(group, x_TD)
        else:
            mine[group] = x_TD

    sent_before = context.exchange.sent_bytes
    with clock.phase("forward"):
        epoch, exhausted = context.feed.rows(decision.step, decision.active, take)
    if not context.exchange.is_local:
        with clock.phase("exchange"):
            owned = context.exchange.bring({group: mine.pop(group) for group in decision.active}, decision.owners)
        # popped one by one: the rows of a group can be freed as soon as its SVD has them
        for group in list(owned):
            updates.add(group, owned.pop(group))
    updates.flush()
    return StepReport(
        groups=tuple(sorted(updates.reports, key=lambda report: report.group)),
        tokens=max(tokens.values(), default=0),
        epoch=epoch,
        seconds=clock.seconds,
        exhausted=exhausted,
        sent_bytes=context.exchange.sent_bytes - sent_before,
        svd_processor_seconds=clock.processor_seconds.get("svd", 0.0),
        point_tokens=tokens,
    )


def run_pass(
    state: PassState,
    step: Callable[[StepDecision], Sequence[StepReport]],
    on_step: Callable[[PassState], None] = lambda state: None,
) -> PassState:
    """Drive steps until every point has ended: all its layers converged, `max_steps` reached, or the data gone.

    Args:
        state: where to begin: `points.first_pass`, or what a checkpoint holds.
        step: carries a decision to every worker and brings back their reports.
        on_step: told the state after each step (progress).

    Returns:
        The last state; each point's `pass_seconds` count from the first forward to its last allocation.
    """
    before, started = state.slowest.pass_seconds, time.perf_counter()
    while not state.decision.stop:
        step_started, running = time.perf_counter(), state.running
        reports = step(state.decision)
        reported = time.perf_counter()
        state = advance_pass(state, reports, reported - step_started)
        decided = time.perf_counter()
        state = add_times(state, running, decided - reported, before + decided - started)
        on_step(state)
    return state


def finish(
    state: PointState, components: Mapping[int, Components], world_size: int = 1, covariance: Path | None = None
) -> PointResult:
    """Merge what the workers own into the result of a point; a group that was never updated has no component."""
    merged = {
        group.index: components.get(group.index)
        or Components(torch.empty(0, group.in_features), torch.empty(0), torch.empty(0))
        for group in state.plan.groups
    }
    return PointResult(state, merged, world_size, covariance)
