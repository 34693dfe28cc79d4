"""One global budget, of ranks or parameters, handed out by explained variance (EVA, arXiv 2410.07170, section 3.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor


def allocate_ranks(ratios_K: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """Give the `budget` largest explained-variance ratios of all layers their rank.

    Args:
        ratios_K: layer name to its ratios, strongest first, at most as many as the layer may get.
            Members of an input group each bring their own copy, as in PEFT.
        budget: how many components to hand out; with fewer candidates each gets its rank.

    Returns:
        Layer name to rank, every layer present, in the order of `ratios_K`.

    Ties (members of an input group tie exactly) go to the layer that comes first in
    `ratios_K`, then to the stronger component. So the first member of an input group
    never has a smaller rank than the others. Cost: one stable sort of all ratios.
    """
    if not ratios_K:
        return {}
    values_N, owner_N = _pool_ratios(ratios_K)
    return _count_won(ratios_K, owner_N[_largest_first(values_N)[:budget]])


def allocate_parameters(
    ratios_K: Mapping[str, Tensor], parameters_per_rank: Mapping[str, int], budget: int
) -> dict[str, int]:
    """Give components their rank by explained variance per LoRA parameter, as far as the parameters go.

    Component k of layer l explains `ratio_lk` and costs `c_l = in_features_l + out_features_l`, a row
    of A and a column of B. Components of all layers are taken in the order of `ratio_lk / c_l`, largest
    first; one that costs more than what is left is passed over in favour of later ones that cost less.
    That is EVA's rule (section 3.2, there `c_l` = 1) as the greedy algorithm by density for the knapsack
    problem (Dantzig, "Discrete-variable extremum problems", Operations Research 5(2), 1957).

    Args:
        ratios_K: as for `allocate_ranks`.
        parameters_per_rank: layer name to `c_l`, at least 1.
        budget: how many parameters to hand out.

    Returns:
        Layer name to rank, every layer present, in the order of `ratios_K`; `sum(rank_l * c_l) <= budget`.

    - Each layer gets its strongest components: they all cost the same, so they are met strongest first, and once
      one is passed over there is never again enough left for a weaker one.
    - Less of the budget is left over than the smallest `c_l` among the layers with components left, for any of
      them would have been taken. If no layer has any left, all of them fit the budget.
    - What it explains falls short of the best choice by at most the ratio of the first component passed over: up to
      there nothing explains more with as many parameters.
    - Ties in density go to the larger ratio, then as in `allocate_ranks`, whose result this is where all `c_l`
      are equal. Within an input group it is the cheaper member that has the larger rank.

    Cost: two stable sorts, and at most one pass over what is left for each distinct `c_l`.
    """
    if not ratios_K:
        return {}
    values_N, owner_N = _pool_ratios(ratios_K)
    cost_N = torch.tensor([parameters_per_rank[name] for name in ratios_K])[owner_N]
    order_N = _largest_first(values_N)
    order_N = order_N[_largest_first((values_N / cost_N)[order_N])]
    taken, left = [order_N[:0]], budget
    while len(order_N := order_N[cost_N[order_N] <= left]):
        spent_N = cost_N[order_N].cumsum(0)
        fits = int((spent_N <= left).sum())  # one at least; the next costs more than will be left, as do all like it
        taken.append(order_N[:fits])
        left -= int(spent_N[fits - 1])
        order_N = order_N[fits:]
    return _count_won(ratios_K, owner_N[torch.cat(taken)])


def _pool_ratios(ratios_K: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the ratios of all layers as float64 `[N]`, and which layer each belongs to, by position."""
    values_N = torch.cat([ratios.detach().to("cpu", torch.float64) for ratios in ratios_K.values()])
    owner_N = torch.repeat_interleave(torch.tensor([len(ratios) for ratios in ratios_K.values()]))
    return values_N, owner_N


def _largest_first(values_N: Tensor) -> Tensor:
    """Return the positions of the values, largest first; equal ones keep their order."""
    return values_N.sort(descending=True, stable=True).indices


def _count_won(ratios_K: Mapping[str, Tensor], winners: Tensor) -> dict[str, int]:
    """Return how many components each layer has won, by layer name."""
    return dict(zip(ratios_K, torch.bincount(winners, minlength=len(ratios_K)).tolist(), strict=True))
