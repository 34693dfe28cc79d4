"""Ranks beyond what the data have: counted by each tracker's own rounding errors, and named."""

import pytest
import torch

from eva_dist.numerics.components import Components
from eva_dist.numerics.data_rank import beyond_data, distinct_directions


def components(*values: float) -> Components:
    values_K = torch.tensor(values, dtype=torch.float64)
    return Components(torch.eye(len(values), 16), values_K, values_K.square() / values_K.square().sum())


@pytest.mark.parametrize(
    ("values", "directions"),
    [
        ((3.0, 2.0, 1.0), 3),
        ((3.0, 2e-3, 1e-4), 3),  # steep, and yet real
        ((3.0, 2.0, 1.0, 1e-6, 1e-7, 0.0), 3),
        ((3e4, 2e4, 1e4, 1e-2), 3),
        ((0.0, 0.0), 0),
        ((), 0),
    ],
)
def test_what_is_left_of_rounding_is_no_direction(values, directions):
    assert distinct_directions(components(*values)) == directions


def test_layers_within_their_data_are_not_mentioned():
    assert beyond_data([("a", 3, components(3, 2, 1, 0)), ("b", 0, components(0, 0))]) == ""


def test_layers_beyond_their_data_are_named_with_what_there_is():
    found = beyond_data([(f"l{i}", 2 + i, components(3, 2, 1, 1e-7, 0, 0, 0)) for i in range(6)])
    assert found == (
        "4 of 6 layers have a larger rank than their inputs have distinct directions; the other components are "
        "rounding errors, and never converge: use more varied data, or a smaller eva.r: l2 (rank 4, 3 directions), "
        "l3 (rank 5, 3 directions), l4 (rank 6, 3 directions) and 1 more"
    )
