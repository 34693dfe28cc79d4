"""`solver=covariance`: exact, and states add up in any order."""

import itertools
from functools import reduce

import pytest
import torch
from token_streams import constant_plus_noise, decaying, exact, follow, low_rank, massive

from eva_dist.numerics.covariance import CovarianceTracker, merge

K = 6
STREAMS = {
    "drifting": lambda: decaying(48, 40, 12, drift=0.1),
    "massive": lambda: massive(48, 40, 12),
    "large mean": lambda: constant_plus_noise(48, 40, 12),
    "fewer rows than features": lambda: decaying(48, K, 4),
    "rank 3": lambda: low_rank(48, 40, 4, rank=3),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_components_are_those_of_the_full_covariance(stream):
    minibatches = STREAMS[stream]()
    tracker, expected = CovarianceTracker(K), exact(minibatches)
    state = follow(tracker, minibatches)
    found = tracker.components(state)
    assert abs(expected.deficit(found.v_KD)) <= 1e-10
    assert found.v_KD.dtype == torch.float64
    scale = float(expected.eigenvalues_D[0])
    torch.testing.assert_close(state.scatter_DD, expected.scatter_DD, rtol=1e-11, atol=1e-13 * scale)
    torch.testing.assert_close(
        found.singular_values_K.square(), expected.eigenvalues_D[:K].clamp_min(0), rtol=1e-9, atol=1e-13 * scale
    )


@pytest.mark.parametrize("stream", STREAMS)
def test_states_of_disjoint_rows_add_up_in_any_order(stream):
    minibatches = STREAMS[stream]()
    tracker, expected = CovarianceTracker(K), exact(minibatches)
    parts = [follow(tracker, minibatches[:1]), follow(tracker, minibatches[1:3]), follow(tracker, minibatches[3:])]
    snapshots = [part.scatter_DD.clone() for part in parts]
    scale = float(expected.eigenvalues_D[0])
    for order in itertools.permutations(parts):
        merged = reduce(merge, order)
        assert merged.moments.rows == expected.rows
        mean_D = torch.from_numpy(expected.mean_D)
        torch.testing.assert_close(merged.moments.mean_D, mean_D, rtol=1e-12, atol=1e-13)
        assert float(merged.moments.total_variance) == pytest.approx(expected.total_variance, rel=1e-11)
        torch.testing.assert_close(merged.scatter_DD, expected.scatter_DD, rtol=1e-10, atol=1e-13 * scale)
        assert abs(expected.deficit(tracker.components(merged).v_KD)) <= 1e-10
    assert all(torch.equal(part.scatter_DD, kept) for part, kept in zip(parts, snapshots, strict=True))


def test_a_merged_state_takes_more_rows():
    minibatches = decaying(48, 40, 9, drift=0.1)
    tracker = CovarianceTracker(K)
    merged = merge(follow(tracker, minibatches[:3]), follow(tracker, minibatches[3:6]))
    found = tracker.components(follow(tracker, minibatches[6:], merged))
    assert abs(exact(minibatches).deficit(found.v_KD)) <= 1e-10
