"""EVA's own rules: when a layer stops, how the budget is handed out, the rows and the alpha of LoRA's A."""

import copy
from dataclasses import replace

import pytest
import torch

from eva_dist.calibration.controller import GroupState, first_state, refuse_unconverged
from eva_dist.config import Budget, EvaConfig
from eva_dist.errors import NotConvergedError
from eva_dist.methods.eva import Eva, adapter_rows, layer_alpha
from eva_dist.numerics.components import Components
from eva_dist.plan import make_layer, make_plan


@pytest.fixture
def components():
    generator = torch.Generator().manual_seed(0)
    v_KD = torch.linalg.qr(torch.randn(9, 9, generator=generator)).Q[:4]
    return Components(v_KD, torch.tensor([100.0, 9.0, 4.0, 0.25]), torch.tensor([0.8, 0.1, 0.05, 0.01]))


@pytest.mark.parametrize(
    ("cosines", "rank", "tau", "expected"),
    [
        ([0.99, 0.98, 0.5], 2, 0.98, True),  # >= tau, and only the first two count
        ([0.99, 0.98, 0.5], 3, 0.98, False),
        ([0.5, 0.99, 0.99], 2, 0.98, False),
        ([0.1], 0, 0.99, True),
        (None, 0, 0.99, True),
        (None, 1, 0.0, False),
        ([-1.0], 1, 0.99, False),
        ([float("nan")], 1, 0.5, False),
    ],
)
def test_converged_over_the_components_that_the_allocation_gives(cosines, rank, tau, expected):
    cosines_K = None if cosines is None else torch.tensor(cosines, dtype=torch.float64)
    plan = make_plan([make_layer("a", 8, 8, r=3, rho=1.0)], [["a"]])
    known = GroupState(torch.ones(3), cosines_K, rows=9, updates=2)
    state = replace(first_state(plan, Eva(tau), max_steps=9), groups=(known,), ranks={"a": rank})
    assert state.is_converged(0) is expected
    assert (state.active == ()) is expected


def test_what_has_not_converged_is_named_with_its_shortfall():
    plan = make_plan([make_layer(name, 8, 8, r=2, rho=1.0) for name in "ab"], [["a"], ["b"]])
    turning = GroupState(torch.ones(2), torch.tensor([0.95, 0.2], dtype=torch.float64), rows=9, updates=2)
    state = replace(first_state(plan, Eva(0.9), max_steps=9), groups=(turning, GroupState(skipped=3)))
    assert state.shortfall(0) == (1, 0.2) and state.shortfall(1) == (2, None)
    with pytest.raises(NotConvergedError, match=r"2 of 2 layers have not converged to tau=0\.9") as refused:
        refuse_unconverged(state)
    assert "  a: 1 of 2 components below, lowest cosine 0.2000" in str(refused.value)
    assert "  b: only 0 updates, 3 steps too short" in str(refused.value)


@pytest.mark.parametrize(("budget", "expected"), [(Budget.ranks, {"a": 3, "b": 1}), (Budget.params, {"a": 2, "b": 2})])
def test_the_budget_is_one_of_ranks_or_of_parameters(budget, expected):
    wide, narrow = make_layer("a", 8, 24, r=2, rho=2.0), make_layer("b", 8, 8, r=2, rho=2.0)
    plan = make_plan([wide, narrow], [["a"], ["b"]], budget=budget)
    ratios_K = {"a": torch.tensor([0.5, 0.3, 0.2, 0.0]), "b": torch.tensor([0.4, 0.19, 0.0, 0.0])}
    assert Eva(0.9).allocate(plan, ratios_K) == expected


def test_alpha_follows_the_rank_only_where_it_is_asked_for():
    assert layer_alpha(EvaConfig(lora_alpha=16, adjust_scaling_factors=True), r=8, rank=12) == 24
    assert layer_alpha(EvaConfig(lora_alpha=16, adjust_scaling_factors=False), r=8, rank=12) == 16


@pytest.mark.parametrize("rank", [0, 1, 4])
@pytest.mark.parametrize("whiten", [False, True])
def test_adapter_rows_are_float32_contiguous_and_a_copy(components, rank, whiten):
    before = copy.deepcopy(components)
    rows = adapter_rows(components, rank, whiten)
    assert rows.shape == (rank, 9) and rows.dtype == torch.float32 and rows.is_contiguous()
    rows.fill_(7.0)
    assert torch.equal(components.v_KD, before.v_KD)
    assert torch.equal(components.singular_values_K, before.singular_values_K)


@pytest.mark.parametrize("layout", [lambda v: v, lambda v: v.mT.contiguous().mT, lambda v: v.double()])
def test_adapter_rows_do_not_depend_on_how_the_components_lie_in_memory(components, layout):
    laid_out = Components(layout(components.v_KD), components.singular_values_K, components.explained_variance_ratio_K)
    rows = adapter_rows(laid_out, 3, whiten=False)
    assert torch.equal(rows, components.v_KD[:3]) and rows.is_contiguous()


def test_whitening_divides_by_the_root_of_the_singular_value_once_for_every_member_of_a_group(components):
    expected = components.v_KD / torch.tensor([10.0, 3.0, 2.0, 0.5])[:, None]
    for _ in range(3):  # q, k and v share one SVD
        torch.testing.assert_close(adapter_rows(components, 4, whiten=True), expected)


def test_whitening_a_component_without_variance_gives_no_infinity():
    components = Components(torch.eye(2), torch.tensor([4.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert adapter_rows(components, 2, whiten=True).tolist() == [[0.5, 0.0], [0.0, 1.0]]
