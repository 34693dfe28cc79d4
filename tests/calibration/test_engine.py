"""One worker's pass, in process, on a model of four layers: against the plain computation."""

import pytest
import torch

from eva_dist.calibration.controller import StepDecision, Stop, first_state
from eva_dist.calibration.engine import PassContext, finish, run_pass, run_step
from eva_dist.calibration.group_svds import collect_components, give, make_tracker, make_trackers, rows_at_once
from eva_dist.calibration.layer_inputs import RowFeed, make_taps, probe_inputs
from eva_dist.calibration.pass_state import one_point
from eva_dist.config import SolverConfig, SolverName
from eva_dist.data import Window
from eva_dist.distributed.exchange import LocalExchange
from eva_dist.methods.eva import Eva
from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.numerics.incremental import IncrementalTracker
from eva_dist.numerics.subspace import SubspaceTracker
from eva_dist.plan import make_layer, make_plan, share
from tests.toy import LAYERS, Block, D, Plainly, R, Steps, hooks, minibatch, toy_feed, toy_plan

CPU = torch.device("cpu")
OWNERS = {0: 0, 1: 0, 2: 0}


def make_worker(steps, solver=SolverName.covariance, **options):
    """A lone worker whose step k forwards the minibatches `steps[k]`."""
    plan = share([toy_plan()])
    source = steps if isinstance(steps, Steps) else Steps.one_by_one(steps)
    feed = toy_feed(source, groups=plan.groups, **{"consumed_at_once": True, **options})
    return PassContext(plan, feed, LocalExchange(), make_trackers(SolverConfig(solver), plan))


def decide(step, *active):
    return StepDecision(step, active, OWNERS)


def test_layers_with_one_input_are_found_and_more_minibatches_are_forwarded_only_when_needed():
    model = Block()
    model.threshold = 0.5
    forward = Plainly(model)
    probe = probe_inputs(model, LAYERS, forward, [minibatch(0), minibatch(1)])
    assert probe.groups == (("q", "k"), ("o",), ("expert",)) and forward.forwarded == 1
    assert probe.calls == dict.fromkeys(LAYERS, 1) and probe.dtypes == dict.fromkeys(LAYERS, torch.float32)
    quiet = minibatch(0) - 100  # nothing is routed to the expert
    forward = Plainly(model)
    probe = probe_inputs(model, LAYERS, forward, [quiet, quiet, minibatch(1), minibatch(2)])
    assert probe.groups[-1] == ("expert",) and forward.forwarded == 3
    assert probe.calls == dict.fromkeys(LAYERS, 0)  # calls of three forwards say nothing of one


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (SolverConfig(), SubspaceTracker(5)),
        (SolverConfig(oversampling=3, power_steps=2, seed=7), SubspaceTracker(5, 3, 2, 7)),
        (SolverConfig(SolverName.incremental), IncrementalTracker(5, None, 4, 42)),
        (SolverConfig(SolverName.incremental, 1, 0, 3), IncrementalTracker(5, 1, 0, 3)),
        (SolverConfig(SolverName.covariance), CovarianceTracker(5)),
    ],
)
def test_settings_make_their_tracker(solver, expected):
    assert make_tracker(solver, 5) == expected


@pytest.mark.parametrize("at_once", [True, False])
def test_a_step_forwards_all_minibatches_and_updates_each_active_group_once_with_all_their_rows(at_once):
    first, second = minibatch(0), minibatch(1, rows=7)
    window = Window(range(0, 1), (first, second), None, epochs=(3,))
    worker = make_worker(Steps({0: window}), consumed_at_once=at_once)
    svds = {}
    report = run_step(worker, decide(0, 0, 1, 2), svds)
    assert [(g.group, g.rows, g.finite, g.cosines_K) for g in report.groups] == [(i, 37, True, None) for i in range(3)]
    assert (report.tokens, report.epoch, report.exhausted, report.sent_bytes) == (37, 3, False, 0)
    assert set(report.seconds) == {"forward", "svd"} and min(report.seconds.values()) >= 0
    assert report.svd_processor_seconds > 0
    expected = CovarianceTracker(4)
    state = expected.update(None, torch.cat([first, second]))
    assert torch.equal(svds[0][0].components.v_KD, expected.components(state).v_KD)
    assert torch.equal(report.groups[0].ratios_K, expected.components(state).explained_variance_ratio_K)


def test_groups_updated_together_are_as_those_updated_one_by_one(monkeypatch):
    """An accelerator lets rows wait until there are many; here until there are three groups', or two."""
    steps = {at: [minibatch(at)] for at in range(3)}
    alone, expected = make_worker(steps, SolverName.subspace), {}
    for at in steps:
        one = run_step(alone, decide(at, 0, 1, 2), expected)
    for most in (10**6, 2 * 30 * D * 4):
        monkeypatch.setattr("eva_dist.calibration.group_svds.rows_at_once", lambda device, most=most: most)
        worker, svds = make_worker(steps, SolverName.subspace, consumed_at_once=False), {}
        for at in steps:
            report = run_step(worker, decide(at, 0, 1, 2), svds)
        assert [(g.group, g.rows) for g in report.groups] == [(g.group, g.rows) for g in one.groups]
        for together, single in zip(report.groups, one.groups, strict=True):
            torch.testing.assert_close(together.ratios_K, single.ratios_K, rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(together.cosines_K, single.cosines_K, rtol=0, atol=1e-5, check_dtype=False)
        for group, svd in ((group, by_point[0]) for group, by_point in svds.items()):
            torch.testing.assert_close(svd.components.v_KD, expected[group][0].components.v_KD, rtol=0, atol=1e-5)


def test_a_cpu_updates_a_group_as_soon_as_its_rows_are_there():
    assert rows_at_once(CPU) == 0 and rows_at_once(torch.device("cuda", 0)) > 0


def test_groups_that_are_not_active_are_left_alone_and_no_svd_is_changed_but_replaced():
    worker, svds = make_worker({0: [minibatch(0)], 1: [minibatch(1)]}), {}
    run_step(worker, decide(0, 0, 1, 2), svds)
    before = {group: by_point[0] for group, by_point in svds.items()}
    kept = {group: svd.components.v_KD.clone() for group, svd in before.items()}
    report = run_step(worker, decide(1, 1), svds)
    assert [g.group for g in report.groups] == [1] and report.groups[0].cosines_K.shape == (4,)
    assert svds[0][0] is before[0] and svds[1][0] is not before[1] and svds[2][0] is before[2]
    assert all(torch.equal(svd.components.v_KD, kept[group]) for group, svd in before.items())


def test_too_few_rows_leave_a_group_as_it_was_and_no_minibatch_is_no_row():
    end = Window(range(2, 3), (), None, (0,), exhausted=True)
    windows = Steps.one_by_one({0: [minibatch(0)], 1: [minibatch(1, rows=3)]}).windows | {2: end}
    worker, svds = make_worker(Steps(windows)), {}
    run_step(worker, decide(0, 0, 1, 2), svds)
    before = {group: dict(by_point) for group, by_point in svds.items()}
    report = run_step(worker, decide(1, 0), svds)
    assert (report.groups[0].rows, report.groups[0].ratios_K) == (3, None) and svds == before
    report = run_step(worker, decide(2, 0), svds)
    assert (report.groups[0].rows, report.tokens, report.exhausted) == (0, 0, True) and svds == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_reported_and_never_reaches_a_tracker(bad):
    x_TD = minibatch(0)
    x_TD[3, 4] = bad
    svds = {}
    report = run_step(make_worker({0: [x_TD]}), decide(0, 0), svds)
    assert not report.groups[0].finite and svds == {}


def test_layers_may_have_other_names_in_the_model_that_runs():
    plan, model = make_plan([make_layer("model.block.q", D, D, R, 2.0)], [["model.block.q"]]), Block()
    forward, names = Plainly(model), {"model.block.q": "q"}
    probe = probe_inputs(model, ["q"], forward, [minibatch(0)]).renamed({"q": "model.block.q"})
    assert probe.groups == (("model.block.q",),)
    feed = RowFeed(model, forward, Steps.one_by_one({0: [minibatch(0)]}), make_taps(plan.groups, probe, names), CPU)
    worker = PassContext(share([plan]), feed, LocalExchange(), make_trackers(SolverConfig(), share([plan])))
    report = run_step(worker, StepDecision(0, (0,), {0: 0}), {})
    assert report.groups[0].rows == 30


def test_svds_are_given_away_once():
    svds = {0: {0: "a"}, 2: {0: "b"}, 3: {0: "c", 1: "c"}}
    assert give(svds, (2, 3, 7)) == {2: {0: "b"}, 3: {0: "c", 1: "c"}} and svds == {0: {0: "a"}}
    assert give(svds, (2, 3)) == {}


@pytest.mark.parametrize("solver", list(SolverName))
def test_a_whole_pass_converges_to_the_components_of_the_rows_it_saw(solver):
    steps = {at: [minibatch(at)] for at in range(200)}
    worker, svds, actives = make_worker(steps, solver), {}, []

    def step(decision):
        assert decision.step == len(actives) and decision.owners == OWNERS
        actives.append(decision.active)
        return [run_step(worker, decision, svds)]

    told = []
    whole = run_pass(one_point(first_state(worker.plan.points[0], Eva(0.99), 200)), step, told.append)
    state = whole.only()
    assert state.stop is Stop.converged and whole is told[-1] and len(told) == len(actives) == state.steps
    assert sum(state.ranks.values()) == state.plan.rank_budget == 4 * R and state.pass_seconds > 0 and state.steps < 200
    assert set(state.seconds) == {"forward", "svd", "decision"} and state.svd_processor_seconds > 0
    rows_TD = torch.cat([steps[at][0] for at, active in enumerate(actives) if 0 in active]).double()
    exact_KD = torch.linalg.svd(rows_TD - rows_TD.mean(dim=0)).Vh[: state.ranks["q"]]
    result = finish(state, collect_components(worker.plan, svds))
    overlap = torch.linalg.matrix_norm(exact_KD @ result.components[0].v_KD[: state.ranks["q"]].double().mT) ** 2
    assert overlap / state.ranks["q"] > 0.98
    assert list(result.components) == [0, 1, 2] and result.state is state
    assert hooks(worker.feed.model) == 0


def test_a_pass_that_may_not_go_on_stops_where_it_was_told():
    worker, svds = make_worker({at: [minibatch(at)] for at in range(3)}), {}

    def step(decision):
        return [run_step(worker, decision, svds)]

    state = run_pass(one_point(first_state(worker.plan.points[0], Eva(1.0), 3)), step).only()
    assert state.stop is Stop.max_steps and state.steps == 3


def test_a_lower_precision_of_products_does_not_reach_the_statistics(monkeypatch):
    """Training scripts allow TF32 for the whole process."""
    seen = []
    update_many = SubspaceTracker.update_many

    def watched(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return update_many(*arguments)

    monkeypatch.setattr(SubspaceTracker, "update_many", watched)
    worker = make_worker({0: [minibatch(0)]}, SolverName.subspace)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        run_step(worker, decide(0, 0, 1, 2), {})
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen and set(seen) == {"highest"}
