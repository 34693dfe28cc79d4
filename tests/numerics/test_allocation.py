"""The rank budget: against brute force, against PEFT's rule, and at its edges."""

from collections import Counter

import pytest
import torch

from eva_dist.numerics.allocation import allocate_ranks


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
