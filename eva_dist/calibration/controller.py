"""Decisions of a pass, from summaries alone: no ray, no torch.distributed, no model, no method's name.

The driver folds the workers' `StepReport`s into a `PointState`, one for each point of the
pass, and sends back one `StepDecision`. That record is the one backward edge of the flow: a layer counts as
converged only over the components that the current allocation gives it, so the
allocation decides which layers stay tapped. Every worker obeys the same record;
workers that disagreed on the active groups would enter different collectives and hang.

The rules are PEFT's (`eva.py`, `_get_eva_state_dict`): a converged group is no longer
updated; it is tapped again when a later allocation gives it components that had not
converged; ranks are allocated anew after each step once every group has components.
When a component has stopped turning, and how ranks are handed out, is for the `Method` to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from eva_dist.errors import (
    EmptyStreamError,
    EvaDistError,
    NonFiniteActivationsError,
    NotConvergedError,
    TooFewTokensError,
)
from eva_dist.numerics.components import Components
from eva_dist.plan import Plan


class Stop(Enum):
    """Why a pass ended."""

    converged = "converged"
    max_steps = "max_steps"
    exhausted = "exhausted"


@dataclass(frozen=True)
class StepDecision:
    """What every worker does next: run step `step` on the `active` input groups, or stop.

    `owners` maps every input group to the worker that keeps its SVD from this step on. `points`
    maps an active group to the points that it is updated for; one that it leaves out is
    updated for point 0.
    """

    step: int
    active: tuple[int, ...]
    owners: Mapping[int, int]
    stop: bool = False
    points: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def points_of(self, group: int) -> tuple[int, ...]:
        """Return the points that an active group is updated for."""
        return self.points.get(group, (0,))


@dataclass(frozen=True)
class GroupReport:
    """One input group after one step, from its owner, for the `points` that have it in common.

    K is the most components that one of them has. `cosines_K` and `ratios_K` are None when the
    tracker was not updated: the step had fewer token rows than components. `cosines_K` alone is
    None at the first update.
    """

    group: int
    rows: int
    ratios_K: Tensor | None = None
    cosines_K: Tensor | None = None
    finite: bool = True
    points: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class StepReport:
    """One worker's step: the groups it owns, the token rows it forwarded, seconds by phase.

    `epoch` counts how often the data has been used up when the step ends; `exhausted` says
    that there was no data left for this step and never will be. `sent_bytes` counts token
    rows sent to other workers; `svd_processor_seconds` is time of this worker's processors.
    `point_tokens` has the token rows of points whose active groups saw fewer than `tokens`; `unlabelled` counts
    samples without a token that counts: all are masked, or lie behind `data.max_length`.
    """

    groups: tuple[GroupReport, ...]
    tokens: int
    epoch: int
    seconds: Mapping[str, float]
    exhausted: bool = False
    sent_bytes: int = 0
    svd_processor_seconds: float = 0.0
    point_tokens: Mapping[int, int] = field(default_factory=dict)
    unlabelled: int = 0


@dataclass(frozen=True)
class GroupState:
    """What the driver knows of one input group. `step` is the last step that updated it, -1 for none.

    `converged_to` is of artifacts that were merged, which have no cosines of their own: the lowest one, over all
    sources, of the components that had a rank there.
    """

    ratios_K: Tensor | None = None
    cosines_K: Tensor | None = None
    rows: int = 0
    updates: int = 0
    skipped: int = 0
    step: int = -1
    converged_to: float | None = None


@dataclass(frozen=True)
class ConvergenceRow:
    """One line of `convergence.parquet`: an input group after one step.

    `components_converged` counts among the first `rank`; `seconds` is the whole step's.
    """

    step: int
    group: int
    rows_seen: int
    rank: int
    components_converged: int
    seconds: float


class Method(Protocol):
    """What a pass asks of the method that it runs for; a value that can be sent to workers and compared."""

    def settled_K(self, cosines_K: Tensor) -> Tensor:
        """Return for each component, by its cosine with itself one update earlier, whether it holds still: `[K]`."""

    def allocate(self, plan: Plan, ratios_K: Mapping[str, Tensor]) -> Mapping[str, int]:
        """Return each layer's rank, from the explained-variance ratios of its components, strongest first."""

    def not_converged(self, state: "PointState") -> NotConvergedError:
        """Return the error that names every layer of this point that has not converged."""


@dataclass(frozen=True)
class PointState:
    """All that is known of a point after `steps` steps; replaced, never changed.

    A point is one (r, rho, tau, ...); a pass serves one or many (`points.py`), and each is folded as if it were alone.

    `ranks` holds the maximum ranks until every group has components, then the allocation.
    With `accept`, a group that a whole epoch could not update (an expert that no token
    reaches) no longer holds the others up: it gets rank 0, and never counts as converged.
    `tokens` counts token rows; `elapsed` is the seconds of all steps, `pass_seconds` with the
    decisions between them, `seconds` the slowest worker's by phase; points of one pass share them.
    `sent_bytes`, `svd_processor_seconds` and `unlabelled` are summed over the workers.
    """

    plan: Plan
    method: Method
    max_steps: int
    accept: bool
    groups: tuple[GroupState, ...]
    ranks: Mapping[str, int]
    steps: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    epoch: int = 0
    exhausted: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    history: tuple[ConvergenceRow, ...] = ()
    sent_bytes: int = 0
    svd_processor_seconds: float = 0.0
    pass_seconds: float = 0.0
    unlabelled: int = 0

    def group_rank(self, group: int) -> int:
        """Return the largest rank among the group's members."""
        return max(self.ranks[name] for name in self.plan.groups[group].members)

    def is_converged(self, group: int) -> bool:
        """Tell whether the components that the allocation gives this group have converged.

        With rank 0 there are none to wait for; without cosines there were fewer than two updates.
        """
        known, rank = self.groups[group], self.group_rank(group)
        if known.updates == 0:
            return False
        if known.converged_to is not None and self._all_settled(
            torch.tensor([known.converged_to], dtype=torch.float64)
        ):
            return True
        return rank == 0 or (known.cosines_K is not None and self._all_settled(known.cosines_K[:rank]))

    def shortfall(self, group: int) -> tuple[int, float | None]:
        """Return how many of the components that the allocation gives a group still turn, and their lowest cosine.

        None as cosine says that there were fewer than two updates, so no cosine at all.
        """
        rank, cosines_K = self.group_rank(group), self.groups[group].cosines_K
        if cosines_K is None:
            return rank, None
        judged_K = cosines_K[:rank]
        return int((~self.method.settled_K(judged_K)).sum()), float(judged_K.min()) if rank else None

    def _all_settled(self, cosines_K: Tensor) -> bool:
        return bool(self.method.settled_K(cosines_K).all())

    @cached_property
    def active(self) -> tuple[int, ...]:
        """Indices of the groups that still need data."""
        return tuple(group.index for group in self.plan.groups if not self.is_converged(group.index))

    @property
    def layers_converged(self) -> int:
        """How many layers (not groups) have converged."""
        active = set(self.active)
        return sum(len(group.members) for group in self.plan.groups if group.index not in active)

    @property
    def stop(self) -> Stop | None:
        """Why the point has ended; None while it goes on."""
        if not self.active:
            return Stop.converged
        if self.exhausted:
            return Stop.exhausted
        return Stop.max_steps if self.steps >= self.max_steps else None


@dataclass(frozen=True)
class PointResult:
    """What a pass hands to the artifact: the last state, components by group, and how many workers it ended with.

    `covariance` is a file of what `solver=covariance` has summed up, where that is to be kept.
    """

    state: PointState
    components: Mapping[int, Components]
    world_size: int = 1
    covariance: Path | None = None


PointEnd = PointResult | EvaDistError
"""How a point ended: with a result, converged or not, or by what refused it (too few tokens, activations)."""


def first_state(plan: Plan, method: Method, max_steps: int, accept: bool = False) -> PointState:
    """Return the state before the first step: every group is active over all its components."""
    return PointState(plan, method, max_steps, accept, tuple(GroupState() for _ in plan.groups), plan.max_ranks())


def advance(state: PointState, reports: Sequence[StepReport], step_seconds: float = 0.0) -> PointState:
    """Fold one step's reports (one a worker) into the state.

    Raises:
        NonFiniteActivationsError: a layer's inputs held NaN or infinity.
        EmptyStreamError: a whole epoch held no token that counts.
        TooFewTokensError: a whole epoch went by without one update of some group (with `accept`: of any).
    """
    groups = list(state.groups)
    updated = [report for worker in reports for report in worker.groups]
    for report in updated:
        if not report.finite:
            raise NonFiniteActivationsError(
                f"inputs of layer {state.plan.groups[report.group].tap} hold NaN or infinity at step {state.steps}; "
                "check the model's weights, or load it in float32 (model.dtype=float32)"
            )
        groups[report.group] = _advance_group(groups[report.group], report, state.steps)
    moved = replace(
        state,
        groups=tuple(groups),
        steps=state.steps + 1,
        tokens=state.tokens + sum(report.tokens for report in reports),
        elapsed=state.elapsed + step_seconds,
        epoch=max(report.epoch for report in reports),
        exhausted=any(report.exhausted for report in reports),
        seconds=add_seconds(state.seconds, _slowest_worker([report.seconds for report in reports])),
        sent_bytes=state.sent_bytes + sum(report.sent_bytes for report in reports),
        svd_processor_seconds=state.svd_processor_seconds + sum(report.svd_processor_seconds for report in reports),
        unlabelled=state.unlabelled + sum(report.unlabelled for report in reports),
    )
    # a group that all data could not update would keep the allocation, and so everybody, waiting
    if _is_last_chance_gone(moved):
        _refuse_starving(moved)
    moved = replace(moved, ranks=_allocate_ranks(moved))
    return replace(
        moved, history=moved.history + tuple(_convergence_row(moved, r.group, step_seconds) for r in updated)
    )


def refuse_unconverged(state: PointState) -> None:
    """Raise `NotConvergedError` that lists every layer that has not converged and by how much."""
    if state.active:
        raise state.method.not_converged(state)


def _advance_group(group: GroupState, report: GroupReport, step: int) -> GroupState:
    if report.ratios_K is None:
        return replace(group, skipped=group.skipped + 1)
    return GroupState(
        ratios_K=report.ratios_K,
        cosines_K=report.cosines_K,
        rows=group.rows + report.rows,
        updates=group.updates + 1,
        skipped=group.skipped,
        step=step,
    )


def _is_last_chance_gone(state: PointState) -> bool:
    """Tell whether a group without an update so far has to be given up: all data was seen, or no step is left."""
    return state.epoch > 0 or state.exhausted or state.steps >= state.max_steps


def _allocate_ranks(state: PointState) -> Mapping[str, int]:
    # PEFT allocates when every layer has components; until then each layer keeps its maximum
    ratios = [torch.empty(0) if group.ratios_K is None else group.ratios_K for group in state.groups]
    if not all(len(ratios_K) for ratios_K in ratios) and not _is_last_chance_gone(state):
        return state.ranks
    by_name = {name: ratios[group.index] for group in state.plan.groups for name in group.members}
    in_order = {layer.name: by_name[layer.name] for layer in state.plan.layers}
    return state.method.allocate(state.plan, in_order)


def reallocated(state: PointState) -> PointState:
    """Return the state with the ranks handed out anew, over the ratios that are known."""
    return replace(state, ranks=_allocate_ranks(state))


def _refuse_starving(state: PointState) -> None:
    starving = [group for group in state.plan.groups if state.groups[group.index].updates == 0]
    if not starving or (state.accept and len(starving) < len(state.groups)):
        return
    if state.tokens == 0:
        raise EmptyStreamError(
            f"{state.steps} steps held no token that counts: every one is masked or empty; "
            "check the labels, or leave them out of it with use_label_mask=false"
        )
    need = max(group.n_components for group in starving)
    raise TooFewTokensError(
        f"none of {state.steps} steps had the {need} token rows that {need} components need "
        f"({state.tokens} token rows in all; starving: {name_some([g.tap for g in starving])}); "
        "raise the samples a step (data.step_size, or your dataloader's batch size) or their length, lower r or rho, "
        "or leave layers that see no token out"
    )


def _convergence_row(state: PointState, group: int, seconds: float) -> ConvergenceRow:
    known, rank = state.groups[group], state.group_rank(group)
    converged = 0 if known.cosines_K is None else int(state.method.settled_K(known.cosines_K[:rank]).sum())
    return ConvergenceRow(state.steps - 1, group, known.rows, rank, converged, seconds)


def name_some(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def add_seconds(total: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Add seconds phase by phase."""
    return {phase: total.get(phase, 0.0) + more.get(phase, 0.0) for phase in sorted({*total, *more})}


def _slowest_worker(workers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the slowest worker's seconds, phase by phase."""
    phases = {phase for seconds in workers for phase in seconds}
    return {phase: max(seconds.get(phase, 0.0) for seconds in workers) for phase in phases}
