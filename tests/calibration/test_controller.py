"""Decisions from summaries: freeze and thaw, stops, refusals, and agreement with PEFT's loop."""

import dataclasses
import random

import pytest
import torch

from eva_dist.calibration.controller import (
    GroupReport,
    StepReport,
    Stop,
    advance,
    first_state,
    refuse_unconverged,
)
from eva_dist.config import Budget
from eva_dist.errors import EmptyStreamError, NonFiniteActivationsError, NotConvergedError, TooFewTokensError
from eva_dist.methods.eva import Eva
from eva_dist.plan import make_layer, make_plan

TAU = 0.9


def plan(groups=(("q", "k", "v"), ("o",), ("up",)), r=2, rho=2.0, in_features=16, world_size=1):
    names = [name for group in groups for name in group]
    return make_plan([make_layer(name, in_features, 8, r, rho) for name in names], groups, world_size)


def start(**settings):
    return first_state(plan(**settings), Eva(TAU), max_steps=20)


def group(index, ratios, cosines=None, rows=100):
    """An update; without `cosines` the first one."""
    cosines_K = None if cosines is None else torch.tensor(cosines, dtype=torch.float64)
    return GroupReport(index, rows, torch.tensor(ratios, dtype=torch.float64), cosines_K)


def report(*groups, tokens=100, epoch=0, exhausted=False, **seconds):
    return StepReport(tuple(groups), tokens, epoch, seconds, exhausted)


def ended(state):
    """Steps done, what is still active, and why it ended."""
    return state.steps, state.active, state.stop


EVEN = [0.4, 0.3, 0.2, 0.1]
GOOD, BAD = [1.0] * 4, [0.0] * 4


def test_before_the_first_step_all_groups_are_active_over_all_their_components():
    state = start()
    assert ended(state) == (0, (0, 1, 2), None)
    assert state.ranks == {"q": 4, "k": 4, "v": 4, "o": 4, "up": 4}
    assert state.layers_converged == 0


def test_the_first_update_has_no_cosines_and_converges_nothing():
    state = advance(start(), [report(*(group(i, EVEN) for i in range(3)))])
    assert ended(state) == (1, (0, 1, 2), None)
    assert sum(state.ranks.values()) == state.plan.rank_budget == 10


def test_ranks_are_allocated_only_when_every_group_has_components():
    state = advance(start(), [report(group(0, EVEN, GOOD), group(1, EVEN), GroupReport(2, 3))])
    assert state.ranks == state.plan.max_ranks()
    state = advance(state, [report(group(1, EVEN, GOOD), group(2, [0.9, 0.8, 0.7, 0.6]))])
    assert state.ranks == {"q": 2, "k": 2, "v": 1, "o": 1, "up": 4}


def test_a_converged_group_is_frozen_and_thawed_by_an_allocation_that_gives_it_unconverged_components():
    state = first_state(plan(groups=(("a",), ("b",))), Eva(TAU), 20)  # budget 4, at most 4 components each
    half = [1.0, 1.0, 0.2, 0.2]
    state = advance(state, [report(group(0, EVEN), group(1, EVEN))])
    assert state.ranks == {"a": 2, "b": 2} and state.active == (0, 1)
    state = advance(state, [report(group(0, EVEN, half), group(1, EVEN, BAD))])
    assert state.active == (1,) and state.layers_converged == 1  # a: its two components have converged
    state = advance(state, [report(group(1, [0.35, 0.15, 0.1, 0.1], BAD))])
    assert state.ranks == {"a": 3, "b": 1} and state.active == (0, 1)  # a got a third one: thawed
    state = advance(state, [report(group(0, EVEN, [1.0, 1.0, 1.0, 0.0]), group(1, [0.35, 0.15, 0.1, 0.1], GOOD))])
    assert ended(state) == (4, (), Stop.converged)
    assert [s.updates for s in state.groups] == [3, 4] and [s.step for s in state.groups] == [3, 3]


def test_a_parameter_budget_goes_by_variance_per_parameter_after_each_step():
    """As above with parameters: `wide` costs three times as much, so its ratios count a third."""
    layers = [make_layer("a", 16, 8, 2, 2.0), make_layer("wide", 16, 56, 2, 2.0)]
    made = make_plan(layers, [["a"], ["wide"]], budget=Budget.params)
    assert made.parameter_budget == 2 * 24 + 2 * 72
    state = first_state(made, Eva(TAU), 20)
    assert state.ranks == {"a": 4, "wide": 4}
    half = [1.0, 1.0, 0.2, 0.2]
    state = advance(state, [report(group(0, [0.3, 0.2, 0.01, 0.01]), group(1, [0.9, 0.6, 0.3, 0.1]))])
    assert state.ranks == {"a": 2, "wide": 2}
    state = advance(state, [report(group(0, [0.3, 0.2, 0.01, 0.01], half), group(1, [0.9, 0.6, 0.3, 0.1], BAD))])
    assert state.active == (1,)
    # the second of `wide` is now worth less than any of `a`, whose third and fourth have not converged: thawed
    state = advance(state, [report(group(1, [0.9, 0.02, 0.01, 0.01], half))])
    assert state.ranks == {"a": 4, "wide": 1} and state.active == (0,)
    assert made.parameter_budget - made.parameters(state.ranks) == 24  # too little for `wide`, and `a` is full
    state = advance(state, [report(group(0, [0.3, 0.2, 0.01, 0.01], GOOD))])
    assert state.stop is Stop.converged


def test_a_group_of_rank_zero_has_converged_and_layers_are_counted_not_groups():
    state = start()
    strong, weak = [0.9, 0.8, 0.7, 0.6], [1e-6] * 4
    state = advance(state, [report(group(0, strong), group(1, weak), group(2, weak))])
    assert [state.group_rank(i) for i in range(3)] == [4, 0, 0]
    assert state.active == (0,) and state.layers_converged == 2
    state = advance(state, [report(group(0, strong, GOOD))])
    assert state.stop is Stop.converged and state.layers_converged == 5


def test_tau_is_reached_at_equality_and_one_component_short_is_not_enough():
    state = first_state(plan(groups=(("a",),), rho=1.0), Eva(TAU), 20)
    state = advance(state, [report(group(0, [0.6, 0.3]))])
    assert advance(state, [report(group(0, [0.6, 0.3], [TAU, TAU]))]).stop is Stop.converged
    assert advance(state, [report(group(0, [0.6, 0.3], [1.0, TAU - 1e-9]))]).active == (0,)


def test_max_steps_stops_the_pass_and_convergence_comes_first():
    state = dataclasses.replace(first_state(plan(groups=(("a",),)), Eva(TAU), 2))
    one = advance(state, [report(group(0, EVEN))])
    assert one.stop is None
    assert ended(advance(one, [report(group(0, EVEN, BAD))])) == (2, (0,), Stop.max_steps)
    assert ended(advance(one, [report(group(0, EVEN, GOOD))])) == (2, (), Stop.converged)


def test_data_that_ran_out_stops_the_pass():
    state = advance(start(), [report(*(group(i, EVEN) for i in range(3)))])
    last = advance(state, [report(*(GroupReport(i, 0) for i in range(3)), tokens=0, exhausted=True)])
    assert ended(last) == (2, (0, 1, 2), Stop.exhausted)
    with pytest.raises(NotConvergedError, match="^the data ran out and 5 of 5 layers have not converged"):
        refuse_unconverged(last)


def test_a_step_with_too_few_rows_leaves_a_group_as_it_was():
    state = start()
    for cosines in (None, [0.95, 0.5, 0.5, 0.5]):
        state = advance(state, [report(*(group(i, EVEN, cosines) for i in range(3)))])
    after = advance(state, [report(GroupReport(0, 3), *(group(i, EVEN, BAD) for i in (1, 2)))])
    assert after.groups[0] == dataclasses.replace(state.groups[0], skipped=1)
    assert after.groups[1].updates == 3 and after.groups[1].skipped == 0


def test_states_are_replaced_never_changed():
    state = start()
    before = dataclasses.replace(state)
    advance(state, [report(group(0, EVEN), svd=1.0)])
    assert state == before and state.history == () and state.seconds == {} and state.groups[0].updates == 0


def test_an_epoch_without_an_update_of_some_group_is_refused():
    state = advance(start(), [report(group(0, EVEN), group(1, EVEN), GroupReport(2, 3), tokens=3)])
    with pytest.raises(TooFewTokensError) as caught:
        advance(state, [report(group(0, EVEN, BAD), group(1, EVEN, BAD), GroupReport(2, 3), tokens=3, epoch=1)])
    assert str(caught.value) == (
        "none of 2 steps had the 4 token rows that 4 components need (6 token rows in all; starving: up); "
        "raise the samples a step (data.step_size, or your dataloader's batch size) or their length, lower r or rho, "
        "or leave layers that see no token out"
    )


def test_accepting_gives_a_starving_group_rank_0_and_the_others_the_whole_budget():
    state = dataclasses.replace(start(), accept=True)
    starving = GroupReport(2, 3)
    state = advance(state, [report(group(0, EVEN), group(1, EVEN), starving, tokens=3)])
    assert state.ranks == state.plan.max_ranks()
    state = advance(state, [report(group(0, EVEN, GOOD), group(1, EVEN, GOOD), starving, tokens=3, epoch=1)])
    assert sum(state.ranks.values()) == state.plan.rank_budget
    assert state.group_rank(2) == 0
    assert state.active == (2,)  # it never counts as converged
    with pytest.raises(TooFewTokensError):
        advance(dataclasses.replace(start(), accept=True), [report(starving, tokens=3, epoch=1)])


def test_an_epoch_without_a_token_that_counts_is_refused():
    nothing = report(*(GroupReport(i, 0) for i in range(3)), tokens=0)
    state = advance(start(), [nothing])
    for end in ({"epoch": 1}, {"exhausted": True}):
        with pytest.raises(EmptyStreamError, match="^2 steps held no token that counts: "):
            advance(state, [dataclasses.replace(nothing, **end)])


def test_nan_names_layer_and_step():
    state = advance(start(), [report(*(group(i, EVEN) for i in range(3)))])
    with pytest.raises(NonFiniteActivationsError, match="^inputs of layer o hold NaN or infinity at step 1; .*float32"):
        advance(state, [report(group(0, EVEN, BAD), GroupReport(1, 100, finite=False))])


def test_what_has_not_converged_is_listed_with_count_and_lowest_cosine():
    groups = (("a", "b", "c", "d"), ("e",), ("f",))
    state = first_state(plan(groups=groups, r=2), Eva(TAU), 3)
    state = advance(state, [report(group(0, EVEN), group(1, [0.9, 0.8, 0.7, 0.6]), GroupReport(2, 3))])
    state = advance(state, [report(group(0, EVEN, [1.0, 0.5, 0.25, 1.0]), group(1, EVEN, GOOD), GroupReport(2, 3))])
    with pytest.raises(NotConvergedError) as caught:
        refuse_unconverged(state)
    assert str(caught.value).splitlines() == [
        "max_steps=3 was reached and 5 of 6 layers have not converged to tau=0.9; raise max_steps or the samples a "
        "step (data.step_size), lower tau, or take the result as it is with on_max_steps=accept",
        "  a, b, c and 1 more: 2 of 4 components below, lowest cosine 0.2500",
        "  f: only 0 updates, 2 steps too short",
    ]


def test_nothing_is_refused_when_all_have_converged():
    state = first_state(plan(groups=(("a",),)), Eva(TAU), 20)
    state = advance(advance(state, [report(group(0, EVEN))]), [report(group(0, EVEN, GOOD))])
    assert refuse_unconverged(state) is None


def test_phases_add_the_slowest_worker_and_tokens_all_of_them():
    reports = [report(group(0, EVEN), tokens=10, svd=1.0, forward=5.0), report(tokens=7, svd=3.0, exchange=0.5)]
    state = advance(start(), reports, 6.0)
    state = advance(state, [report(group(0, EVEN, BAD), tokens=1, svd=2.0), report(tokens=2, svd=0.1)], 2.5)
    assert state.seconds == {"exchange": 0.5, "forward": 5.0, "svd": 5.0}
    assert (state.tokens, state.elapsed, state.steps) == (20, 8.5, 2)


def test_sent_bytes_and_processor_time_are_those_of_all_workers_and_steps():
    def of_worker(*groups, **counted):
        return dataclasses.replace(report(*groups), **counted)

    one = of_worker(group(0, EVEN), sent_bytes=100, svd_processor_seconds=0.5)
    state = advance(start(), [one, of_worker(sent_bytes=7, svd_processor_seconds=0.25)])
    assert (state.sent_bytes, state.svd_processor_seconds) == (107, 0.75)
    state = advance(state, [of_worker(group(0, EVEN, BAD), sent_bytes=1), of_worker(svd_processor_seconds=1.0)])
    assert (state.sent_bytes, state.svd_processor_seconds) == (108, 1.75)


def test_the_order_of_the_reports_does_not_matter():
    reports = [
        report(group(0, EVEN), svd=1.0),
        report(group(2, [0.5, 0.1, 0.1, 0.1]), tokens=5),
        report(group(1, EVEN)),
    ]
    states = [advance(start(), order, 1.0) for order in (reports, reports[::-1], reports[1:] + reports[:1])]
    first = states[0]
    for other in states[1:]:
        assert (ended(other), other.ranks, other.tokens) == (ended(first), first.ranks, first.tokens)
        assert other.seconds == first.seconds
    assert all(
        sorted(s.history, key=lambda row: row.group) == sorted(states[0].history, key=lambda r: r.group) for s in states
    )


def test_history_holds_a_row_for_each_group_that_took_part():
    state = advance(start(), [report(group(0, EVEN, rows=30), GroupReport(1, 3), group(2, EVEN))], 0.5)
    state = advance(state, [report(group(0, EVEN, [1.0, 1.0, 0.0, 1.0], rows=12))], 0.25)
    last = state.history[-1]
    assert [(row.step, row.group, row.rows_seen) for row in state.history] == [
        (0, 0, 30),
        (0, 1, 0),
        (0, 2, 100),
        (1, 0, 42),
    ]
    assert (last.rank, last.components_converged, last.seconds) == (4, 3, 0.25)


class PeftLoop:
    """The loop of `_get_eva_state_dict`, peft 0.21, retold: one hook a group, on its first member; no model."""

    def __init__(self, groups, maximum, budget):
        self.groups, self.maximum, self.budget = groups, maximum, budget
        self.ratios, self.converged, self.frozen = {}, {}, dict.fromkeys(range(len(groups)), False)
        self.ranks = {name: maximum for names in groups for name in names}

    def active(self):
        """The hooks that are on in this iteration; none means that the loop breaks."""
        for index, names in enumerate(self.groups):
            self.frozen[index] = all(self.converged.get(index, [False] * self.maximum)[: self.ranks[names[0]]])
        return tuple(index for index, frozen in self.frozen.items() if not frozen)

    def forward(self, updates):
        for index, ratios, cosines in updates:
            self.ratios[index] = ratios
            self.converged[index] = [False] * self.maximum if cosines is None else [c >= TAU for c in cosines]
        if len(self.ratios) < len(self.groups):
            return
        heads = [(names[0], i) for i, names in enumerate(self.groups)]
        tails = [(name, i) for i, names in enumerate(self.groups) for name in names[1:]]
        pool = [(ratio, name) for name, i in heads + tails for ratio in self.ratios[i]]
        chosen = [name for _, name in sorted(pool, key=lambda item: -item[0])[: self.budget]]
        self.ranks = {name: chosen.count(name) for name, _ in heads + tails}
        for name, i in tails:
            head = self.groups[i][0]
            if self.ranks[head] < self.ranks[name]:
                self.ranks[head], self.ranks[name] = self.ranks[name], self.ranks[head]


@pytest.mark.parametrize("seed", range(12))
def test_a_whole_pass_takes_the_steps_freezes_and_ranks_of_pefts_loop(seed):
    """Ratios wander and cosines rise with every update, so groups freeze, thaw, and skip short steps."""
    draw = random.Random(seed)
    groups = [tuple(f"g{i}m{j}" for j in range(draw.choice([1, 1, 2, 3]))) for i in range(6)]
    made = plan(groups=groups, r=2, rho=2.0)
    state = first_state(made, Eva(TAU), max_steps=500)
    peft, updates, thawed = PeftLoop(groups, 4, made.rank_budget), [0] * 6, 0
    while state.stop is None:
        assert state.active == peft.active()
        reports, seen = [], []
        for index in state.active:
            if draw.random() < 0.1:
                reports.append(GroupReport(index, 3))
                continue
            strength = draw.uniform(0.2, 1.0)
            ratios = sorted((strength * draw.random() for _ in range(4)), reverse=True)
            cosines = [1 - draw.random() * 2 / (1 + updates[index]) for _ in range(4)] if updates[index] else None
            updates[index] += 1
            reports.append(group(index, ratios, cosines))
            seen.append((index, ratios, cosines))
        before = set(state.active)
        state = advance(state, [report(*reports[::2]), report(*reports[1::2])])
        peft.forward(seen)
        thawed += len(set(state.active) - before)
        for index, names in enumerate(groups):
            assert sorted(state.ranks[n] for n in names) == sorted(peft.ranks[n] for n in names)
            assert state.group_rank(index) == peft.ranks[names[0]] == state.ranks[names[0]]
    assert state.stop is Stop.converged and peft.active() == ()
    assert 5 < state.steps < 500 and [s.updates for s in state.groups] == updates
    assert thawed > 0
