"""States that are kept: packed and back to the bit, weighted, and what they hold for other methods."""

import pytest
import torch
from token_streams import decaying, follow

from eva_dist.numerics.covariance import CovarianceTracker, from_packed, merge, packed_numbers, scaled, to_packed

K = 6


@pytest.fixture(scope="module")
def minibatches():
    return decaying(48, 40, 6, drift=0.1)


@pytest.fixture(scope="module")
def state(minibatches):
    return follow(CovarianceTracker(K), minibatches)


def test_a_state_that_was_packed_has_the_same_components_to_the_bit(state):
    packed = to_packed(state)
    assert sum(tensor.numel() for tensor in packed.values()) == packed_numbers(48)
    back = from_packed(packed)
    assert torch.equal(back.scatter_DD.tril(), state.scatter_DD.tril())
    assert torch.equal(back.scatter_DD, back.scatter_DD.mT)
    assert (back.moments.rows, type(back.moments.rows)) == (state.moments.rows, int)
    ours, theirs = CovarianceTracker(K).components(back), CovarianceTracker(K).components(state)
    for name in ("v_KD", "singular_values_K", "explained_variance_ratio_K"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    again = to_packed(back)
    assert all(torch.equal(again[name], packed[name]) for name in packed)


def test_what_is_packed_shares_no_memory_with_the_state(state):
    before = state.scatter_DD.clone(), state.moments.mean_D.clone()
    for tensor in to_packed(state).values():
        tensor.zero_()
    assert torch.equal(state.scatter_DD, before[0]) and torch.equal(state.moments.mean_D, before[1])


@pytest.mark.parametrize("weight", [2, 3])
def test_a_weight_counts_rows_so_many_times(minibatches, state, weight):
    again = follow(CovarianceTracker(K), minibatches * weight)
    weighted = scaled(state, weight)
    assert weighted.moments.rows == again.moments.rows
    torch.testing.assert_close(weighted.scatter_DD, again.scatter_DD, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(weighted.moments.mean_D, again.moments.mean_D, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(weighted.moments.total_variance, again.moments.total_variance, rtol=1e-12, atol=0)


def test_weights_may_be_fractions_and_cancel(minibatches):
    tracker = CovarianceTracker(K)
    a, b = follow(tracker, minibatches[:2]), follow(tracker, minibatches[2:])
    plain, halved = merge(a, b), merge(scaled(a, 0.375), scaled(b, 0.375))
    assert halved.moments.rows == pytest.approx(0.375 * plain.moments.rows)
    assert from_packed(to_packed(scaled(a, 0.3))).moments.rows == a.moments.rows * 0.3
    torch.testing.assert_close(halved.moments.mean_D, plain.moments.mean_D, rtol=1e-12, atol=1e-13)
    ours, theirs = tracker.components(halved), tracker.components(plain)
    torch.testing.assert_close(ours.explained_variance_ratio_K, theirs.explained_variance_ratio_K, rtol=1e-12, atol=0)


def test_the_uncentred_covariance_is_in_it(minibatches, state):
    x_TD = torch.cat(minibatches).double()
    uncentred_DD = state.scatter_DD + state.moments.rows * torch.outer(state.moments.mean_D, state.moments.mean_D)
    torch.testing.assert_close(uncentred_DD, x_TD.mT @ x_TD, rtol=1e-10, atol=1e-8)
