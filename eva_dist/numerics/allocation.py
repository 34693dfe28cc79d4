"""One global rank budget, handed out by explained variance (EVA, arXiv 2410.07170, section 3.2)."""

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
    names = list(ratios_K)
    if not names:
        return {}
    values = torch.cat([ratios_K[name].detach().to("cpu", torch.float64) for name in names])
    owner = torch.repeat_interleave(torch.tensor([len(ratios_K[name]) for name in names]))
    winners = values.sort(descending=True, stable=True).indices[:budget]
    counts = torch.bincount(owner[winners], minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))
