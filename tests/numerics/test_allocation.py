"""Budgets of ranks and of parameters: against brute force, against PEFT's rule, and at their edges."""

import itertools
from collections import Counter

import pytest
import torch

from eva_dist.numerics.allocation import allocate_parameters, allocate_ranks


def random_ratios(layers: int, components: int, seed: int, ties: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ratios = {}
    for i in range(layers):
        drawn_K = torch.rand(1 + (i * 5 + seed) % components, generator=generator, dtype=torch.float64)
        ratios[f"layer{i}"] = ((drawn_K * 4).round() / 4 if ties else drawn_K).sort(descending=True).values
    return ratios


def brute_force(ratios, budget: int) -> dict[str, int]:
    """One component after the other: the largest ratio not handed out yet, the earliest layer among equals."""
    ranks = dict.fromkeys(ratios, 0)
    for _ in range(budget):
        best = max((float(r_K[ranks[name]]) for name, r_K in ratios.items() if ranks[name] < len(r_K)), default=None)
        if best is None:
            break
        ranks[next(n for n, r in ratios.items() if ranks[n] < len(r) and float(r[ranks[n]]) == best)] += 1
    return ranks


def pefts_rule(ratios, budget: int) -> dict[str, int]:
    """`_get_rank_distribution` of peft 0.21, without the swap inside input groups."""
    keys, values = zip(*[(name, ratio) for name, r_K in ratios.items() for ratio in r_K], strict=True)
    counts = Counter(keys[i] for i in torch.stack(values).argsort(descending=True)[:budget])
    return {name: counts.get(name, 0) for name in ratios}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("budget", [1, 7, 30, 1000])
def test_as_brute_force(seed, ties, budget):
    ratios = random_ratios(7, 9, seed, ties)
    assert allocate_ranks(ratios, budget) == brute_force(ratios, budget)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [1, 7, 30, 1000])
def test_as_peft_where_nothing_ties(seed, budget):
    ratios = random_ratios(9, 8, seed)
    assert allocate_ranks(ratios, budget) == pefts_rule(ratios, budget)


def test_ties_go_to_the_earlier_layer_and_the_stronger_component():
    equal_K = torch.tensor([0.5, 0.3, 0.1])
    ratios = {"q": equal_K, "k": equal_K, "v": equal_K}
    handed_out = [tuple(allocate_ranks(ratios, budget).values()) for budget in range(10)]
    assert handed_out == [
        (0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (3, 2, 2), (3, 3, 2), (3, 3, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("budget", range(0, 40, 3))
def test_the_first_member_of_an_input_group_never_has_a_smaller_rank(budget):
    ratios = random_ratios(4, 9, 3)
    shared_K = torch.tensor([0.9, 0.5, 0.4, 0.2, 0.1], dtype=torch.float64)
    ratios = {"q": shared_K, **ratios, "k": shared_K, "v": shared_K}
    ranks = allocate_ranks(ratios, budget)
    assert ranks["q"] >= ranks["k"] >= ranks["v"] >= ranks["q"] - 1


def test_layers_keep_their_order_and_rank_zero_is_there():
    ratios = {"b": torch.tensor([0.1]), "a": torch.tensor([0.9, 0.8]), "c": torch.tensor([])}
    assert list(allocate_ranks(ratios, 2).items()) == [("b", 0), ("a", 2), ("c", 0)]


def test_edges_of_the_budget():
    ratios = {"a": torch.tensor([0.6, 0.2]), "b": torch.tensor([0.5])}
    assert allocate_ranks(ratios, 0) == {"a": 0, "b": 0}
    assert allocate_ranks(ratios, 3) == allocate_ranks(ratios, 99) == {"a": 2, "b": 1}
    assert allocate_ranks({}, 5) == {}
    assert allocate_ranks({"a": torch.tensor([])}, 5) == {"a": 0}


def test_dtypes_mix_and_nothing_is_rounded_before_the_sort():
    ratios = {"a": torch.tensor([0.5], dtype=torch.float64), "b": torch.tensor([0.5 + 1e-12], dtype=torch.float64)}
    assert allocate_ranks({**ratios, "c": torch.tensor([0.25])}, 1) == {"a": 0, "b": 1, "c": 0}


def random_costs(ratios, seed: int, most: int = 9) -> dict[str, int]:
    generator = torch.Generator().manual_seed(100 + seed)
    return dict(zip(ratios, torch.randint(1, most + 1, (len(ratios),), generator=generator).tolist(), strict=True))


def parameters(ranks, costs) -> int:
    return sum(rank * costs[name] for name, rank in ranks.items())


def explained(ranks, ratios) -> float:
    return sum(float(ratios[name][:rank].sum()) for name, rank in ranks.items())


def greedy_brute_force(ratios, costs, budget: int):
    """One component after the other, in the order of the rule; also return which components were taken, in no order."""
    pool = [
        (-float(value / costs[name]), -float(value), layer, k, name)
        for layer, (name, r_K) in enumerate(ratios.items())
        for k, value in enumerate(r_K)
    ]
    taken = {name: [] for name in ratios}
    passed_over = None
    for _, ratio, _, k, name in sorted(pool):
        if costs[name] <= budget:
            budget -= costs[name]
            taken[name].append(k)
        elif passed_over is None:
            passed_over = -ratio
    return taken, passed_over


def best_choice(ratios, costs, budget: int) -> float:
    """The most variance that ranks within the budget explain, by trying all of them."""
    choices = itertools.product(*(range(len(r_K) + 1) for r_K in ratios.values()))
    named = (dict(zip(ratios, ranks, strict=True)) for ranks in choices)
    return max(explained(ranks, ratios) for ranks in named if parameters(ranks, costs) <= budget)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("budget", [0, 1, 7, 30, 77, 10_000])
def test_parameters_as_brute_force(seed, ties, budget):
    ratios = random_ratios(7, 9, seed, ties)
    costs = random_costs(ratios, seed)
    ranks = allocate_parameters(ratios, costs, budget)
    taken, _ = greedy_brute_force(ratios, costs, budget)
    assert all(sorted(ks) == list(range(len(ks))) for ks in taken.values())  # each layer's strongest
    assert list(ranks.items()) == [(name, len(ks)) for name, ks in taken.items()]
    left = budget - parameters(ranks, costs)
    assert left >= 0
    waiting = [costs[name] for name, rank in ranks.items() if rank < len(ratios[name])]
    assert all(left < cost for cost in waiting)  # nothing that still fits is left out
    assert (not waiting) == (budget >= sum(len(r_K) * costs[name] for name, r_K in ratios.items()))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [9, 20, 33])
def test_parameters_fall_short_of_the_best_choice_by_less_than_one_component(seed, budget):
    ratios = random_ratios(4, 5, seed)
    costs = random_costs(ratios, seed)
    found, best = explained(allocate_parameters(ratios, costs, budget), ratios), best_choice(ratios, costs, budget)
    _, passed_over = greedy_brute_force(ratios, costs, budget)
    assert best - (passed_over or 0.0) - 1e-12 <= found <= best + 1e-12


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("cost", [1, 3, 1153])
def test_parameters_are_ranks_where_all_layers_cost_the_same(seed, ties, cost):
    ratios = random_ratios(7, 9, seed, ties)
    for budget in (0, 1, 7, 30):
        by_ranks = allocate_ranks(ratios, budget)
        for spare in (0, cost - 1):
            assert allocate_parameters(ratios, dict.fromkeys(ratios, cost), budget * cost + spare) == by_ranks


def test_a_ratio_that_is_larger_by_one_bit_wins_though_its_density_rounds_to_the_same():
    value = torch.tensor([0.7], dtype=torch.float64)
    above = torch.nextafter(value, torch.ones_like(value))
    cost = next(c for c in range(2, 100) if value / c == above / c)
    ratios, costs = {"a": value, "b": above}, {"a": cost, "b": cost}
    assert allocate_parameters(ratios, costs, cost) == allocate_ranks(ratios, 1) == {"a": 0, "b": 1}


def test_what_does_not_fit_is_passed_over_for_what_does():
    ratios = {"dear": torch.tensor([0.9, 0.8]), "cheap": torch.tensor([0.05, 0.02])}
    costs = {"dear": 10, "cheap": 1}
    assert allocate_parameters(ratios, costs, 19) == {"dear": 1, "cheap": 2}
    assert allocate_parameters(ratios, costs, 9) == {"dear": 0, "cheap": 2}
    assert allocate_parameters(ratios, costs, 20) == {"dear": 2, "cheap": 0}


def test_of_an_input_group_the_cheaper_member_has_the_larger_rank_and_equal_ones_go_by_order():
    shared_K = torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64)
    ratios, costs = {"q": shared_K, "k": shared_K, "v": shared_K}, {"q": 6, "k": 4, "v": 4}
    handed_out = [tuple(allocate_parameters(ratios, costs, budget).values()) for budget in (4, 8, 14, 18, 22, 28)]
    assert handed_out == [(0, 1, 0), (0, 1, 1), (1, 1, 1), (1, 2, 1), (1, 2, 2), (2, 2, 2)]


def test_no_layers_and_layers_without_components_cost_nothing():
    assert allocate_parameters({}, {}, 5) == {}
    empty = torch.tensor([])
    assert allocate_parameters({"a": empty, "b": torch.tensor([0.1])}, {"a": 1, "b": 2}, 5) == {"a": 0, "b": 1}
    assert allocate_parameters({"a": empty}, {"a": 1}, 5) == {"a": 0}


SMOLLM2 = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576), "gate": (576, 1536),
           "up": (576, 1536), "down": (1536, 576)}  # fmt: skip


@pytest.mark.parametrize("rho", [1.0, 1.1, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("r", [2, 16])
def test_on_smollm2_shapes_the_budget_is_spent_to_the_last_component_that_fits(r, rho):
    """Where no layer may exceed r the adapter is the uniform one; else it has as many parameters but for a few."""
    generator = torch.Generator().manual_seed(r)
    layers = {f"{i}.{kind}": sum(sizes) for i in range(30) for kind, sizes in SMOLLM2.items()}
    ratios = {}
    for name in layers:
        decay, scale = 0.6 + 0.35 * torch.rand(2, generator=generator, dtype=torch.float64)
        ratios[name] = scale * (1 - decay) * decay ** torch.arange(round(r * rho), dtype=torch.float64)
    uniform = r * sum(layers.values())
    ranks = allocate_parameters(ratios, layers, uniform)
    waiting = [cost for name, cost in layers.items() if ranks[name] < round(r * rho)]
    assert 0 <= uniform - parameters(ranks, layers) < min(waiting, default=1)
    assert parameters(ranks, layers) >= 0.999 * uniform
    if round(r * rho) == r:
        assert set(ranks.values()) == {r}
    else:
        by_ranks = allocate_ranks(ratios, r * len(layers))
        same = allocate_parameters(ratios, layers, parameters(by_ranks, layers))
        assert explained(same, ratios) > explained(by_ranks, ratios)
