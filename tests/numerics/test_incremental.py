"""`solver=incremental` against peft's own `IncrementalPCA`, update by update."""

import pytest
import torch
from peft.utils.incremental_pca import IncrementalPCA
from token_streams import constant_plus_noise, decaying, low_rank, massive

from eva_dist.numerics.incremental import IncrementalTracker

K = 6
STREAMS = {
    "drifting": lambda: decaying(48, 40, 60, drift=0.02),
    "massive": lambda: massive(48, 40, 40),
    "large mean": lambda: constant_plus_noise(48, 40, 40),
    "flat spectrum": lambda: decaying(48, 40, 40, decay=0.05),
    "uneven minibatches": lambda: [x[: 12 + 7 * i % 29] for i, x in enumerate(decaying(48, 40, 40))],
    "bfloat16": lambda: [x.bfloat16() for x in decaying(48, 40, 40)],
    "wide": lambda: decaying(300, 2 * K, 30),
    "short first (K <= T < 2K)": lambda: [decaying(48, K + 1, 1)[0], *decaying(48, 40, 20)],
    "as short as allowed": lambda: decaying(48, K, 40),
    "D < 2K": lambda: decaying(K + 3, 40, 20),
    "rank K": lambda: low_rank(48, 40, 30, rank=K),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_every_update_is_pefts(stream):
    tracker, state = IncrementalTracker(K), None
    reference = IncrementalPCA(K, lowrank=True, lowrank_seed=42)
    for step, x_TD in enumerate(STREAMS[stream]()):
        state = tracker.update(state, x_TD)
        reference.partial_fit(x_TD.to(torch.float32))
        found = tracker.components(state)
        assert found.v_KD.dtype == reference.components_.dtype == (torch.float64 if step else torch.float32)
        close = {"rtol": 1e-7, "atol": 1e-9, "check_dtype": False}
        torch.testing.assert_close(found.v_KD, reference.components_, **close)
        torch.testing.assert_close(found.singular_values_K, reference.singular_values_, **close)
        torch.testing.assert_close(
            found.explained_variance_ratio_K, reference.explained_variance_ratio_, rtol=1e-6, atol=0, check_dtype=False
        )
        assert tracker.moments(state).rows == int(reference.n_samples_seen_)
        torch.testing.assert_close(tracker.moments(state).mean_D, reference.mean_, rtol=1e-12, atol=1e-12)


def test_options_reach_the_svd():
    minibatches = decaying(48, 40, 4, decay=0.2)
    found = []
    for oversampling, power_steps, seed in [(None, 4, 42), (K, 4, 42), (2, 4, 42), (None, 1, 42), (None, 4, 7)]:
        tracker, state = IncrementalTracker(K, oversampling, power_steps, seed), None
        for x_TD in minibatches:
            state = tracker.update(state, x_TD)
        found.append(state.v_KD)
    assert torch.equal(found[0], found[1])
    assert all(not torch.equal(found[0], other) for other in found[2:])
