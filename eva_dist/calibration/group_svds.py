"""The SVDs that a worker keeps: by input group and point, updated as rows arrive, handed on, stored.

Points of a pass whose SVDs have seen the same rows hold one and the same object: one update serves
them all. They part when one is updated and the other is not, or when their trackers differ.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eva_dist.calibration.clock import Clock
from eva_dist.calibration.controller import (
    GroupReport,
    StepDecision,
)
from eva_dist.config import SolverConfig, SolverName
from eva_dist.numerics.components import Components, component_cosines
from eva_dist.numerics.covariance import CovarianceTracker, to_packed
from eva_dist.numerics.incremental import IncrementalTracker
from eva_dist.numerics.records import from_tensors, map_tensors, to_tensors
from eva_dist.numerics.subspace import SubspaceTracker
from eva_dist.numerics.tracker import Tracker, same_rows
from eva_dist.plan import PassPlan

_ROWS_AT_ONCE = {"cuda": 512 * 2**20}
"""Bytes of token rows, in the model's dtype, that an accelerator updates together; a CPU takes group after group."""


@dataclass(frozen=True)
class GroupSvd:
    """An input group's tracker state and the components as of its last update.

    Points whose SVD is the same object have seen the same rows; it is replaced, never changed.
    """

    state: Any
    components: Components


Svds = dict[int, dict[int, GroupSvd]]
"""Input group -> point -> its SVD."""

Trackers = Mapping[int, Mapping[int, Tracker[Any]]]
"""Input group -> point -> its tracker."""

_SHARED = -1
"""In place of a point: the one SVD of `shared_tracker`."""


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


def make_trackers(solver: SolverConfig, plan: PassPlan) -> dict[int, dict[int, Tracker[Any]]]:
    """Return a tracker for each input group and point that has it."""
    return {
        group.index: {
            point: make_tracker(solver, plan.tracked_components(point, group.index))
            for point, own in enumerate(plan.own_group)
            if group.index in own
        }
        for group in plan.groups
    }


def collect_components(plan: PassPlan, svds: Svds, point: int = 0) -> dict[int, Components]:
    """Return a point's components that this worker owns, on the CPU, by the point's own group index."""
    found = {}
    for group, by_point in svds.items():
        if point in by_point:
            k, known = plan.n_components(point, group), by_point[point].components
            found[plan.own_group[point][group]] = Components(
                known.v_KD[:k].cpu(),
                known.singular_values_K[:k].cpu(),
                known.explained_variance_ratio_K[:k].cpu(),
            )
    return found


def collect_covariance(plan: PassPlan, svds: Svds, point: int, own_group: int) -> dict[str, Tensor]:
    """Return what a point's tracker of `solver=covariance` has summed up of one of its own groups, packed."""
    group = next(group for group, own in plan.own_group[point].items() if own == own_group)
    return to_packed(svds[group][point].state)


def give(svds: Svds, groups: Iterable[int]) -> Svds:
    """Take the SVDs of these groups out of `svds`, those that are there, to the CPU, on their way to a new owner."""
    return {group: _move_to(svds.pop(group), torch.device("cpu")) for group in groups if group in svds}


def receive(svds: Svds, given: Mapping[int, Mapping[int, GroupSvd]], device: torch.device) -> None:
    """Keep these SVDs in `svds` from now on, on this device."""
    svds.update({group: _move_to(by_point, device) for group, by_point in given.items()})


def to_checkpoint(by_point: Mapping[int, GroupSvd]) -> dict[str, Tensor]:
    """Return a group's tracker states by name, each once, and which point has which: `points`, int64 `[P, 2]`."""
    distinct = {id(svd): svd for svd in by_point.values()}
    number = {key: at for at, key in enumerate(distinct)}
    tensors = {"points": torch.tensor([[point, number[id(svd)]] for point, svd in by_point.items()])}
    for at, svd in enumerate(distinct.values()):
        tensors |= to_tensors(svd.state, f"{at}.")
    return tensors


def restore(
    trackers: Mapping[int, Tracker[Any]],
    device: torch.device,
    tensors: Mapping[str, Tensor],
    points: Mapping[int, int] | None = None,
) -> dict[int, GroupSvd]:
    """Return a group's SVDs, from what `to_checkpoint` made of them, on a device.

    Args:
        trackers: the group's by point; they make the components.
        device: where the SVDs are to be.
        tensors: from the checkpoint.
        points: a point of the checkpoint to its present index, of those that are wanted; None: the same as then.
    """
    svds: dict[int, GroupSvd] = {}
    numbers: dict[int, list[int]] = {}
    for then, number in tensors["points"].tolist():
        point = then if points is None or then == _SHARED else points.get(then)
        if point is not None:
            numbers.setdefault(number, []).append(point)
    for number, owners in numbers.items():
        candidates = [trackers[point] for point in owners if point in trackers] or list(trackers.values())
        tracker = max(candidates, key=lambda tracker: tracker.n_components)
        leaves = {name: leaf.to(device) for name, leaf in tensors.items() if name.startswith(f"{number}.")}
        found: Any = from_tensors(tracker.state_type, leaves, f"{number}.")
        svds |= dict.fromkeys(owners, GroupSvd(found, tracker.components(found)))
    return svds


@dataclass(frozen=True)
class _Update:
    """One update that is due: of the SVD `before` that `points` have in common, by this step's rows.

    `slots` is under which points the new one is kept; its first `n_components` are reported.
    """

    group: int
    points: tuple[int, ...]
    slots: tuple[int, ...]
    tracker: Tracker[Any]
    n_components: int
    before: GroupSvd | None
    x_TD: Tensor


class Updates:
    """Updates the SVDs of groups as their rows arrive: several at a time on an accelerator, else one by one."""

    def __init__(self, plan: PassPlan, trackers: Trackers, decision: StepDecision, svds: Svds, clock: Clock) -> None:
        self._plan = plan
        self._trackers = trackers
        self._decision = decision
        self._svds = svds
        self.reports: list[GroupReport] = []
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
        # taken out first: if an update raises, its rows are not kept for a second try
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        with self._clock.phase("svd"):
            updates = [u for group, x_TD in self._finite_rows(waiting).items() for u in self._due_updates(group, x_TD)]
            together: dict[Any, list[_Update]] = defaultdict(list)
            for at, update in enumerate(updates):
                alone = rows_at_once(update.x_TD.device) == 0  # batched kernels would round differently
                together[at if alone else (update.tracker, update.n_components)].append(update)
            with same_rows() if len(waiting) == 1 else nullcontext():  # of several, too much would be kept
                for alike in together.values():
                    self.run(alike)

    def _due_updates(self, group: int, x_TD: Tensor) -> list[_Update]:
        """Return the updates of a group: one for all points whose SVDs are the same so far and remain so."""
        by_point, plan = self._svds.get(group, {}), self._plan
        short, alike = [], dict[Any, list[int]]()
        for point in self._decision.points_of(group):
            tracker = self._trackers[group][point]
            if len(x_TD) < tracker.n_components:
                short.append(point)  # too few rows: the SVD stays as it was
                continue
            before = by_point.get(_SHARED if plan.shared_tracker else point)
            # same object and same lineage: the update would give the same numbers, so it is made once
            alike.setdefault((tracker.lineage(x_TD.shape[1]), id(before)), []).append(point)
        if short:
            self.reports.append(GroupReport(group, len(x_TD), points=tuple(short)))
        updates = []
        x_TD = x_TD.float() if len(alike) > 1 else x_TD  # once for all; each would do it for itself
        for points in alike.values():
            # points of one lineage differ in how many components they read; the widest tracker serves all of them
            tracker = max((self._trackers[group][p] for p in points), key=lambda tracker: tracker.n_components)
            slots = (*points, _SHARED) if plan.shared_tracker else tuple(points)
            n_components = max(plan.n_components(point, group) for point in points)
            updates.append(_Update(group, tuple(points), slots, tracker, n_components, by_point.get(slots[-1]), x_TD))
        return updates

    def run(self, updates: Sequence[_Update]) -> None:
        """Run updates that one tracker makes at once."""
        tracker, k = updates[0].tracker, updates[0].n_components
        device = updates[0].x_TD.device
        # neither a caller's autocast nor a TF32 setting may reach the statistics
        with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_float32():
            states = tracker.update_many(
                [u.before.state if u.before else None for u in updates], [u.x_TD for u in updates]
            )
            after = [GroupSvd(state, tracker.components(state)) for state in states]
            found = [
                (
                    svd.components.explained_variance_ratio_K[:k].double(),
                    component_cosines(svd.components.v_KD[:k], u.before.components.v_KD[:k]) if u.before else None,
                )
                for svd, u in zip(after, updates, strict=True)
            ]
        # one transfer for all summaries: each would cost an accelerator a synchronisation
        on_cpu = iter(_to_cpu([t for pair in found for t in pair if t is not None]))
        for svd, update, (_, cosines_K) in zip(after, updates, found, strict=True):
            self._svds.setdefault(update.group, {}).update(dict.fromkeys(update.slots, svd))
            ratios_K = next(on_cpu)
            cosines_on_cpu = next(on_cpu) if cosines_K is not None else None
            self.reports.append(
                GroupReport(update.group, len(update.x_TD), ratios_K, cosines_on_cpu, points=update.points)
            )

    def _finite_rows(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the rows that hold neither NaN nor infinity, and report the others; one synchronisation for all."""
        if not rows:
            return {}
        finite = torch.stack([x_TD.sum(dtype=torch.float32) for x_TD in rows.values()]).isfinite().tolist()
        good = {}
        for (group, x_TD), fine in zip(rows.items(), finite, strict=True):
            if fine:
                good[group] = x_TD
            else:
                points = self._decision.points_of(group)
                self.reports.append(GroupReport(group, len(x_TD), finite=False, points=points))
        return good


def _move_to(by_point: Mapping[int, GroupSvd], device: torch.device) -> dict[int, GroupSvd]:
    """Return the SVDs on a device; points that have one in common still do."""
    moved = {id(svd): svd for svd in by_point.values()}
    moved = {key: map_tensors(svd, lambda tensor: tensor.to(device)) for key, svd in moved.items()}
    return {point: moved[id(svd)] for point, svd in by_point.items()}


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


def _to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bring vectors of one dtype to the CPU in one transfer."""
    joined = torch.cat(list(tensors)).cpu()
    return list(joined.split([len(t) for t in tensors]))
