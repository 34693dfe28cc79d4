"""The points of a pass: many settings, one stream of forwards; a run of its own is a pass of one point.

Each point is folded by `controller.advance` as if it ran alone, from what the workers report of
the SVDs that are its own. So it ends at its own step with its own numbers, and one that fails
costs no other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from eva_dist.calibration.controller import PointState, StepDecision, StepReport, add_seconds, advance
from eva_dist.errors import EvaDistError
from eva_dist.plan import PassPlan, balance, share


@dataclass(frozen=True)
class PassState:
    """All points of a pass after a step; replaced, never changed.

    `errors` has what ended a point before its time. `owners` follows the work: when groups converge and
    leave it lopsided, those that stay active are packed again.
    """

    plan: PassPlan
    points: tuple[PointState, ...]
    errors: tuple[EvaDistError | None, ...]
    owners: Mapping[int, int]

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return max(point.steps for point in self.points)

    @cached_property
    def running(self) -> tuple[int, ...]:
        """The points that have not ended."""
        return tuple(
            i for i, (p, e) in enumerate(zip(self.points, self.errors, strict=True)) if e is None and p.stop is None
        )

    @property
    def slowest(self) -> PointState:
        """The point that still runs and has most layers left; when all have ended, the last one to end."""
        running = [self.points[point] for point in self.running]
        if running:
            return max(running, key=lambda point: len(point.plan.layers) - point.layers_converged)
        return max(self.points, key=lambda point: point.steps)

    @cached_property
    def decision(self) -> StepDecision:
        """What the workers do next."""
        wanted: dict[int, list[int]] = {}
        for point in self.running:
            active = set(self.points[point].active)
            for group, own in self.plan.own_group[point].items():
                if own in active:
                    wanted.setdefault(group, []).append(point)
        points = {group: tuple(wanted[group]) for group in sorted(wanted)}
        return StepDecision(self.steps, tuple(points), self.owners, not points, points)

    def only(self) -> PointState:
        """Return the state of the one point of this pass, or raise what ended it."""
        (point,), (error,) = self.points, self.errors
        if error is not None:
            raise error
        return point


def first_pass(plan: PassPlan, points: Sequence[PointState]) -> PassState:
    """Return the state in which a pass begins, from the points' own."""
    owners = {group.index: group.owner for group in plan.groups}
    return PassState(plan, tuple(points), (None,) * len(points), owners)


def one_point(point: PointState) -> PassState:
    """Return the pass of a single point; its groups are owned as its plan has it."""
    plan = replace(share([point.plan]), groups=point.plan.groups)
    return first_pass(plan, [point])


def advance_pass(state: PassState, reports: Sequence[StepReport], step_seconds: float = 0.0) -> PassState:
    """Fold one step's reports (one a worker) into every point that still runs, and pack what stays active."""
    points, errors = list(state.points), list(state.errors)
    for point in state.running:
        try:
            own = [_of_point(report, state.plan, point) for report in reports]
            points[point] = advance(points[point], own, step_seconds)
        except EvaDistError as error:
            errors[point] = error
            points[point] = replace(points[point], steps=state.steps + 1)  # the step was done
    moved = replace(state, points=tuple(points), errors=tuple(errors))
    return replace(moved, owners=_balance_owners(moved, world_size=len(reports)))


def add_times(state: PassState, points: Sequence[int], decision_seconds: float, pass_seconds: float) -> PassState:
    """Count the seconds of a decision, and those of the pass so far, for these points."""
    timed = list(state.points)
    for point in points:
        seconds = add_seconds(timed[point].seconds, {"decision": decision_seconds})
        timed[point] = replace(timed[point], seconds=seconds, pass_seconds=pass_seconds)
    return replace(state, points=tuple(timed))


def _of_point(report: StepReport, plan: PassPlan, point: int) -> StepReport:
    """Return what a worker's report says of one point, by the point's own groups and component counts."""
    groups = []
    for found in report.groups:
        if point not in found.points:
            continue
        k = plan.n_components(point, found.group)
        groups.append(
            replace(
                found,
                group=plan.own_group[point][found.group],
                ratios_K=None if found.ratios_K is None else found.ratios_K[:k],
                cosines_K=None if found.cosines_K is None else found.cosines_K[:k],
            )
        )
    return replace(report, groups=tuple(groups), tokens=report.point_tokens.get(point, report.tokens))


def _balance_owners(state: PassState, world_size: int) -> Mapping[int, int]:
    """Pack the active groups anew if those that are left burden some worker too much; the others stay."""
    costs = {group: state.plan.cost(group, points) for group, points in state.decision.points.items()}
    moved = balance(costs, {group: state.owners[group] for group in costs}, world_size)
    return {**state.owners, **moved}
