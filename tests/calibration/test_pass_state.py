"""Many points from one stream: each ends as if it had been alone, to the bit; one that fails costs no other."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from eva_dist.calibration.controller import GroupReport, StepReport, Stop, first_state
from eva_dist.calibration.engine import PassContext, run_pass, run_step
from eva_dist.calibration.group_svds import collect_components, give, make_trackers, receive, restore, to_checkpoint
from eva_dist.calibration.pass_state import advance_pass, first_pass, one_point
from eva_dist.config import SolverConfig, SolverName
from eva_dist.distributed.exchange import LocalExchange
from eva_dist.errors import NonFiniteActivationsError, TooFewTokensError
from eva_dist.methods.eva import Eva
from eva_dist.plan import among, make_layer, make_plan, share
from tests.toy import LAYERS, D, Steps, minibatch, toy_feed

GROUPS = [["q", "k"], ["o"], ["expert"]]
STEPS = {at: [minibatch(at)] for at in range(60)}
CPU = torch.device("cpu")
SHORT = 5
"""A step with fewer rows than the largest points have components."""


def plan_of(r=2, rho=2.0, layers=LAYERS, r_of=None):
    made = [make_layer(name, D, D, (r_of or {}).get(name, r), rho) for name in layers]
    return make_plan(made, among(made, GROUPS))


POINTS = {
    "rho 1": (plan_of(rho=1.0), 0.9999, 40),
    "rho 2": (plan_of(), 0.9999, 40),
    "rho 2, twice": (plan_of(), 0.9999, 40),
    "rho 2, looser": (plan_of(), 0.999, 40),
    "rho 2, loose": (plan_of(), 0.5, 40),
    "rho 3": (plan_of(rho=3.0), 0.9999, 40),
    "rho 3, looser": (plan_of(rho=3.0), 0.998, 40),
    "r 3": (plan_of(r=3, rho=1.5), 0.9995, 40),
    "two steps": (plan_of(rho=3.0), 1.0, 2),
    "another r for one": (plan_of(rho=2.0, r_of={"o": 1}), 0.9997, 40),
    "without the expert": (plan_of(layers=("q", "k", "o")), 0.9997, 40),
    "k alone": (plan_of(layers=("k",), rho=3.0), 0.9997, 40),
}


def steps_with_a_short_one():
    return STEPS | {4: [minibatch(4, rows=SHORT)]}


def make_worker(plan, solver, steps):
    feed = toy_feed(Steps.one_by_one(steps), groups=plan.groups, consumed_at_once=True)
    return PassContext(plan, feed, LocalExchange(), make_trackers(SolverConfig(solver), plan))


def begin(plan, points):
    return first_pass(
        plan, [first_state(p, Eva(tau), steps) for p, (_, tau, steps) in zip(plan.points, points, strict=True)]
    )


def drive(points, solver, steps=None, shared_tracker=False, between=lambda worker, svds: None):
    """A whole pass of some points on one worker, and the components of each."""
    plan = share([plan for plan, _, _ in points], shared_tracker=shared_tracker)
    worker, svds = make_worker(plan, solver, steps or steps_with_a_short_one()), {}

    def step(decision):
        report = run_step(worker, decision, svds)
        between(worker, svds)
        return [report]

    state = run_pass(begin(plan, points), step)
    return state, [collect_components(plan, svds, point) for point in range(len(points))], worker


@cache
def alone(name, solver):
    """What a point comes to on its own."""
    state, (components,), _ = drive([POINTS[name]], solver)
    return state.only(), components


def check_same(found, components, own, expected):
    assert (found.steps, found.tokens, found.stop, found.ranks) == (own.steps, own.tokens, own.stop, own.ranks)
    assert [replace(row, seconds=0) for row in found.history] == [replace(row, seconds=0) for row in own.history]
    for one, other in zip(found.groups, own.groups, strict=True):
        assert (one.rows, one.updates, one.skipped, one.step) == (other.rows, other.updates, other.skipped, other.step)
        assert torch.equal(one.ratios_K, other.ratios_K)
        assert one.cosines_K is other.cosines_K is None or torch.equal(one.cosines_K, other.cosines_K)
    assert list(components) == list(expected)
    for group in expected:
        assert torch.equal(components[group].v_KD, expected[group].v_KD)
        assert torch.equal(components[group].singular_values_K, expected[group].singular_values_K)
        assert torch.equal(components[group].explained_variance_ratio_K, expected[group].explained_variance_ratio_K)


def moved_about(worker, svds):
    """Give every SVD away and take it back, as when owners change."""
    receive(svds, give(svds, tuple(svds)), CPU)


def stored_and_restored(worker, svds):
    """Put every SVD into a checkpoint and take it out again."""
    points = {point: point for point in range(len(worker.plan.points))}
    for group in list(svds):
        svds[group] = restore(worker.trackers[group], CPU, to_checkpoint(svds[group]), points)


@pytest.mark.parametrize("between", [lambda *_: None, moved_about, stored_and_restored])
@pytest.mark.parametrize("solver", list(SolverName))
def test_every_point_ends_as_if_it_had_been_alone(solver, between):
    points = list(POINTS.values())
    state, components, worker = drive(points, solver, between=between)
    assert len({point.steps for point in state.points}) > 4 and state.errors == (None,) * len(points)
    for i, name in enumerate(POINTS):
        check_same(state.points[i], components[i], *alone(name, solver))
    assert worker.feed.forward.forwarded == max(point.steps for point in state.points)


def test_points_share_an_update_as_long_as_their_svds_are_the_same(monkeypatch):
    """Blocks as wide as 32 serve few components: all of these points have one tracker's state until they part."""
    updates, made = [], []
    points = [POINTS[name] for name in ("rho 2", "rho 2, twice", "rho 2, loose", "rho 1", "rho 3")]
    solver = SolverName.subspace
    tracker = type(next(iter(make_trackers(SolverConfig(solver), share([points[0][0]]))[0].values())))
    update_many = tracker.update_many

    def counted(self, states, rows):
        updates.append(len(rows))
        return update_many(self, states, rows)

    monkeypatch.setattr(tracker, "update_many", counted)
    state, _, _ = drive(points, solver, STEPS)
    together = sum(updates)
    for point in points:
        updates.clear()
        drive([point], solver, STEPS)
        made.append(sum(updates))
    assert max(made) <= together < 0.5 * sum(made)


def test_a_wider_tracker_of_a_shared_pass_is_not_the_same_but_near():
    points = [POINTS["rho 1"], (plan_of(r=4, rho=3.0), 0.99, 40)]
    exact, (expected, _), _ = drive(points, SolverName.incremental, STEPS)
    shared, (found, _), worker = drive(points, SolverName.incremental, STEPS, shared_tracker=True)
    assert {tracker.n_components for tracker in worker.trackers[0].values()} == {12}
    assert not torch.equal(found[0].v_KD, expected[0].v_KD)
    assert found[0].v_KD.shape == expected[0].v_KD.shape
    assert (torch.linalg.vecdot(found[0].v_KD, expected[0].v_KD).abs() > 0.9).all()


def test_with_a_shared_tracker_each_group_is_updated_once_a_step(monkeypatch):
    points = [POINTS[name] for name in ("rho 1", "rho 2, loose", "rho 3", "r 3")]
    reports = []

    def watched(worker, decision, svds):
        reports.append(step(worker, decision, svds))
        return reports[-1]

    step = run_step
    monkeypatch.setitem(globals(), "run_step", watched)
    drive(points, SolverName.incremental, STEPS, shared_tracker=True)
    for report in reports:
        assert len({group.group for group in report.groups}) == len(report.groups)


def report_of(plan, groups, rows=100, points=(0,), tokens=100, **options):
    ratios = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    found = tuple(GroupReport(group, rows, ratios, None, points=points) for group in groups)
    return StepReport(found, tokens, options.pop("epoch", 0), {}, **options)


def test_a_point_that_cannot_go_on_ends_and_the_others_do_not():
    """Steps of three rows: enough for two components, never for four."""
    steps = {at: [minibatch(at, rows=3)] for at in range(60)}
    points = [(plan_of(rho=1.0), 0.5, 3), (plan_of(rho=2.0), 0.5, 3)]
    state, components, _ = drive(points, SolverName.covariance, steps)
    assert state.errors[0] is None and isinstance(state.errors[1], TooFewTokensError)
    assert state.points[0].steps == 3 and state.points[0].groups[0].updates == 3 and not components[1]
    with pytest.raises(TooFewTokensError, match="4 components need"):
        drive(points[1:], SolverName.covariance, steps)[0].only()


def test_activations_that_are_not_finite_end_the_points_whose_layers_they_enter():
    plans = [plan_of(), plan_of(layers=("q", "k"))]
    state = first_pass(share(plans), [first_state(plan, Eva(0.9), 10) for plan in plans])
    ratios = torch.full((4,), 0.2, dtype=torch.float64)
    reports = (GroupReport(0, 9, ratios, points=(0, 1)), GroupReport(1, 9, finite=False), GroupReport(2, 9, ratios))
    after = advance_pass(state, [StepReport(reports, 9, 0, {})])
    assert isinstance(after.errors[0], NonFiniteActivationsError) and after.errors[1] is None
    assert after.running == (1,) and after.decision.points == {0: (1,)} and not after.decision.stop


def test_a_step_is_decided_once_for_all_points():
    plans = [plan_of(), plan_of(rho=1.0), plan_of(layers=("o",))]
    state = first_pass(share(plans), [first_state(plan, Eva(0.9), 10) for plan in plans])
    assert state.decision.active == (0, 1, 2) and state.decision.step == 0
    assert state.decision.points == {0: (0, 1), 1: (0, 1, 2), 2: (0, 1)}
    assert one_point(state.points[0]).decision.points == {0: (0,), 1: (0,), 2: (0,)}


def test_tokens_of_a_point_are_those_of_its_own_groups():
    plans = [plan_of(layers=("q", "k", "o", "expert")), plan_of(layers=("expert",))]
    plan = share(plans)
    worker = make_worker(plan, SolverName.covariance, STEPS)
    worker.feed.model.threshold = 0.5  # the expert sees only some rows
    svds = {}
    begun = first_pass(plan, [first_state(one, Eva(0.5), 3) for one in plans])
    state = run_pass(begun, lambda decision: [run_step(worker, decision, svds)])
    all_rows, experts = (point.tokens for point in state.points)
    assert 0 < experts < all_rows


def test_owners_follow_the_groups_that_stay_active():
    """Four groups of one cost on two workers: those of one worker settle, so it takes over one of the other's."""
    even_K, names = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), ("a", "b", "c", "d")
    plan = make_plan([make_layer(name, 16, 8, 2, 2.0) for name in names], [[name] for name in names], 2)
    state = one_point(first_state(plan, Eva(0.9), 20))
    assert state.owners == state.decision.owners == {0: 0, 1: 1, 2: 0, 3: 1}

    def step(state, good):
        """Every active group is updated; a cosine of 1 for those of `good`."""
        cosines = {i: None if state.steps == 0 else torch.full((4,), float(i in good)) for i in state.decision.active}
        reports = tuple(GroupReport(i, 100, even_K, cosines_K) for i, cosines_K in cosines.items())
        return advance_pass(state, [StepReport(reports, 100, 0, {}), StepReport((), 100, 0, {})])

    even = step(state, ())
    assert even.owners == state.owners
    one_left_each = step(even, (0, 1))
    assert one_left_each.decision.active == (2, 3)
    assert one_left_each.owners == state.owners  # nothing is moved for nothing
    lopsided = step(even, (1, 3))
    assert lopsided.decision.active == (0, 2) and sorted(lopsided.owners[i] for i in (0, 2)) == [0, 1]
    assert {i: lopsided.owners[i] for i in (1, 3)} == {1: 1, 3: 1}  # what is frozen stays where it is
    assert lopsided.decision.owners == lopsided.owners and set(lopsided.owners) == set(range(4))
    assert even.owners == {0: 0, 1: 1, 2: 0, 3: 1}


def test_the_slowest_point_is_the_one_that_runs_and_has_most_left():
    state, _, _ = drive([POINTS["rho 2, loose"], POINTS["rho 3"]], SolverName.covariance, STEPS)
    assert state.running == () and state.slowest is max(state.points, key=lambda point: point.steps)
    assert all(point.stop in (Stop.converged, Stop.max_steps) for point in state.points)
