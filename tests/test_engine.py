"""One worker's pass, in process, on a model of four layers: against the plain computation."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from eva_dist.config import SolverConfig, SolverName
from eva_dist.controller import StepDecision, Stop
from eva_dist.distributed.exchange import LocalExchange
from eva_dist.engine import (
    Worker,
    collect_components,
    find_input_groups,
    finish,
    make_tracker,
    make_trackers,
    run_pass,
    run_step,
)
from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.numerics.incremental import IncrementalTracker
from eva_dist.numerics.subspace import SubspaceTracker
from eva_dist.plan import make_layer, make_plan

D, R = 12, 2
LAYERS = ("q", "k", "o", "expert")


class Block(nn.Module):
    """q and k share an input, o has another, the expert sees the rows above a threshold in feature 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o, self.expert = (nn.Linear(D, D) for _ in range(4))
        self.threshold = -10.0

    def forward(self, x_TD):
        self.expert(x_TD[x_TD[:, 0] > self.threshold])
        return self.o(torch.relu(self.q(x_TD) + self.k(x_TD)))


class Plainly:
    """A minibatch is `[T, D]`; every row counts."""

    def __init__(self):
        self.forwarded = 0

    def run(self, model, minibatch):
        self.forwarded += 1
        model(minibatch)

    def select(self, minibatch):
        return lambda arguments, name: arguments[0]


@dataclass(frozen=True)
class Step:
    minibatches: list = field(default_factory=list)
    epoch: int = 0
    exhausted: bool = False


def minibatch(step: int, rows: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, D, generator=generator) * torch.arange(1, D + 1) ** -1.0 + 0.5


def make_worker(solver=SolverName.covariance):
    plan = make_plan([make_layer(name, D, D, R, 2.0) for name in LAYERS], [["q", "k"], ["o"], ["expert"]])
    model = Block()
    return Worker(
        model=model,
        plan=plan,
        forward=Plainly(),
        exchange=LocalExchange(),
        trackers=make_trackers(SolverConfig(solver), plan.groups),
        names={name: name for name in LAYERS},
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_layers_with_one_input_are_found_and_more_minibatches_are_forwarded_only_when_needed():
    forward, model = Plainly(), Block()
    model.threshold = 0.5
    assert find_input_groups(model, LAYERS, forward, [minibatch(0), minibatch(1)]) == [["q", "k"], ["o"], ["expert"]]
    assert forward.forwarded == 1
    quiet = minibatch(0) - 100  # nothing is routed to the expert
    forward = Plainly()
    assert find_input_groups(model, LAYERS, forward, [quiet, quiet, minibatch(1), minibatch(2)])[-1] == ["expert"]
    assert forward.forwarded == 3


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


def test_a_step_forwards_all_minibatches_and_updates_each_active_group_once_with_all_their_rows():
    worker = make_worker()
    first, second = minibatch(0), minibatch(1, rows=7)
    report, svds = run_step(worker, StepDecision(0, (0, 1, 2)), Step([first, second], epoch=3), {})
    assert [(g.group, g.rows, g.finite, g.cosines_K) for g in report.groups] == [(i, 37, True, None) for i in range(3)]
    assert (report.tokens, report.epoch, report.exhausted) == (37, 3, False)
    assert set(report.seconds) == {"forward", "exchange", "svd"} and min(report.seconds.values()) >= 0
    expected = CovarianceTracker(4)
    state = expected.update(None, torch.cat([first, second]))
    assert torch.equal(svds[0].components.v_KD, expected.components(state).v_KD)
    assert torch.equal(report.groups[0].ratios_K, expected.components(state).explained_variance_ratio_K)


def test_groups_that_are_not_active_are_left_alone_and_nothing_is_changed_in_place():
    worker = make_worker()
    _, before = run_step(worker, StepDecision(0, (0, 1, 2)), Step([minibatch(0)]), {})
    kept = dict(before)
    report, after = run_step(worker, StepDecision(1, (1,)), Step([minibatch(1)]), before)
    assert [g.group for g in report.groups] == [1] and report.groups[0].cosines_K.shape == (4,)
    assert before == kept and after[0] is before[0] and after[1] is not before[1]


def test_too_few_rows_leave_a_group_as_it_was_and_no_minibatch_is_no_row():
    worker = make_worker()
    _, before = run_step(worker, StepDecision(0, (0, 1, 2)), Step([minibatch(0)]), {})
    report, after = run_step(worker, StepDecision(1, (0,)), Step([minibatch(1, rows=3)]), before)
    assert (report.groups[0].rows, report.groups[0].ratios_K) == (3, None) and after == before
    report, after = run_step(worker, StepDecision(1, (0,)), Step([], exhausted=True), before)
    assert (report.groups[0].rows, report.tokens, report.exhausted) == (0, 0, True) and after == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_reported_and_never_reaches_a_tracker(bad):
    worker, x_TD = make_worker(), minibatch(0)
    x_TD[3, 4] = bad
    report, svds = run_step(worker, StepDecision(0, (0,)), Step([x_TD]), {})
    assert not report.groups[0].finite and svds == {}


def test_layers_may_have_other_names_in_the_model_that_runs():
    plan = make_plan([make_layer("model.block.q", D, D, R, 2.0)], [["model.block.q"]])
    trackers = make_trackers(SolverConfig(), plan.groups)
    worker = replace(make_worker(), plan=plan, trackers=trackers, names={"model.block.q": "q"})
    report, _ = run_step(worker, StepDecision(0, (0,)), Step([minibatch(0)]), {})
    assert report.groups[0].rows == 30


@pytest.mark.parametrize("solver", list(SolverName))
def test_a_whole_pass_converges_to_the_components_of_the_rows_it_saw(solver):
    worker, svds, seen = make_worker(solver), {}, []

    def step(decision):
        nonlocal svds
        assert decision.step == len(seen)
        seen.append((decision.active, minibatch(decision.step)))
        report, svds = run_step(worker, decision, Step([seen[-1][1]]), svds)
        return [report]

    told = []
    state, seconds = run_pass(worker.plan, 0.99, 200, step, told.append)
    assert state.decision.stop is Stop.converged and state is told[-1] and len(told) == len(seen) == state.steps < 200
    assert sum(state.ranks.values()) == state.plan.rank_budget == 4 * R and seconds > 0
    rows_TD = torch.cat([x_TD for active, x_TD in seen if 0 in active]).double()
    exact_KD = torch.linalg.svd(rows_TD - rows_TD.mean(dim=0)).Vh[: state.ranks["q"]]
    result = finish(state, collect_components(svds), seconds)
    overlap = torch.linalg.matrix_norm(exact_KD @ result.components[0].v_KD[: state.ranks["q"]].double().mT) ** 2
    assert overlap / state.ranks["q"] > 0.98
    assert list(result.components) == [0, 1, 2] and result.state is state
    assert not any(len(module._forward_pre_hooks) for module in worker.model.modules())


def test_a_pass_that_may_not_go_on_stops_where_it_was_told():
    worker, svds = make_worker(), {}

    def step(decision):
        nonlocal svds
        report, svds = run_step(worker, decision, Step([minibatch(decision.step)]), svds)
        return [report]

    state, _ = run_pass(worker.plan, 1.0, 3, step)
    assert state.decision.stop is Stop.max_steps and state.steps == 3
