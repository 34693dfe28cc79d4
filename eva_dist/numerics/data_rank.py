"""How many directions a layer's inputs have at all: a rank beyond them is filled with rounding errors.

Such ranks are named, and handed out all the same: PEFT does, its artifact is ours to match, and how many components are
followed decides the numbers of the others.
"""

from collections.abc import Iterable

import torch

from eva_dist.numerics.components import Components

_NOISE = 64 * torch.finfo(torch.float32).eps
"""Of the largest singular value. Rows are float32 or less, and trackers leave up to 1e-6 of it (measured, all three)
where data of rank 3 have none; a component at this level explains 6e-11 of what the first one does."""

_MOST_NAMED = 3


def distinct_directions(components: Components) -> int:
    """Return how many of the components hold more than rounding errors."""
    values_K = components.singular_values_K
    return int((values_K > _NOISE * values_K[:1]).sum()) if len(values_K) else 0


def beyond_data(layers: Iterable[tuple[str, int, Components]]) -> str:
    """Return which layers have a larger rank than their inputs have directions, and what to do; empty if none.

    Args:
        layers: name, rank and components of each.
    """
    counted = [(name, rank, distinct_directions(components)) for name, rank, components in layers]
    beyond = [f"{name} (rank {rank}, {known} directions)" for name, rank, known in counted if rank > known]
    if not beyond:
        return ""
    more = len(beyond) - _MOST_NAMED
    return (
        f"{len(beyond)} of {len(counted)} layers have a larger rank than their inputs have distinct directions; the "
        "other components are rounding errors, and never converge: use more varied data, or a smaller eva.r: "
        f"{', '.join(beyond[:_MOST_NAMED])}{f' and {more} more' if more > 0 else ''}"
    )
