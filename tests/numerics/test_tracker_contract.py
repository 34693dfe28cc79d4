"""The contract that every tracker passes: states are values, moments are exact, components are proper."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from token_streams import constant_plus_noise, decaying, exact, follow, low_rank, massive
from torch.profiler import ProfilerActivity, profile

from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.numerics.incremental import IncrementalTracker
from eva_dist.numerics.records import from_tensors, to_tensors
from eva_dist.numerics.subspace import SubspaceTracker

K = 6
TRACKERS = {"subspace": SubspaceTracker, "incremental": IncrementalTracker, "covariance": CovarianceTracker}
WORST_DEFICIT = {"subspace": 2e-3, "incremental": 2e-2, "covariance": 1e-10}
STREAMS = {
    "drifting": lambda: decaying(48, 40, 12, drift=0.02),
    "massive": lambda: massive(48, 40, 12),
    "large mean": lambda: constant_plus_noise(48, 40, 12),
    "short first (K <= T < 2K)": lambda: [decaying(48, K + 1, 1)[0], *decaying(48, 40, 12)[1:]],
    "as short as allowed": lambda: decaying(48, K, 40),
    "D < 2K": lambda: decaying(K + 3, 40, 12),
    "D = K": lambda: decaying(K, 40, 12),
    "rank 3": lambda: low_rank(48, 40, 12, rank=3),
    "rank 3, short first": lambda: low_rank(48, 40, 12, rank=3, first=K + 1),
}

every_tracker = pytest.mark.parametrize("name", TRACKERS)
every_stream = pytest.mark.parametrize("stream", STREAMS)


def tensors(value):
    """All tensors of a (nested) state, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name))]
    return []


def same(a, b) -> bool:
    """Bit for bit, dtypes included."""
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    assert pairs
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


@every_tracker
def test_a_state_is_replaced_and_never_changed(name):
    tracker, minibatches = TRACKERS[name](K), decaying(48, 40, 6, drift=0.02)
    before = copy.deepcopy(minibatches)
    states, snapshots = [None], []
    for x_TD in minibatches:
        states.append(tracker.update(states[-1], x_TD))
        snapshots.append(copy.deepcopy(states[-1]))
        tracker.components(states[-1])
    assert all(same(state, snapshot) for state, snapshot in zip(states[1:], snapshots, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(minibatches, before, strict=True))
    assert same(tracker.update(states[3], minibatches[3]), states[4])  # an old state is as good as ever
    with pytest.raises(dataclasses.FrozenInstanceError):
        states[1].moments = None


@every_tracker
def test_components_do_not_share_memory_with_the_state(name):
    tracker = TRACKERS[name](K)
    state = follow(tracker, decaying(48, 40, 3))
    found = tracker.components(state)
    expected = copy.deepcopy(found)
    follow(tracker, decaying(48, 40, 3, seed=9), state)
    assert same(tracker.components(state), expected) and same(found, expected)


@every_tracker
def test_the_same_rows_give_the_same_bits_and_leave_the_global_generator_alone(name):
    minibatches = [decaying(48, K + 1, 1)[0], *decaying(48, 40, 4)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = follow(TRACKERS[name](K), minibatches)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(follow(TRACKERS[name](K), minibatches), first)


@every_tracker
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_floating_dtype_counts_as_the_values_it_holds(name, dtype):
    minibatches = [x.to(dtype) for x in decaying(48, 40, 5)]
    tracker = TRACKERS[name](K)
    found = tracker.components(follow(tracker, minibatches))
    assert same(found, tracker.components(follow(tracker, [x.float() for x in minibatches])))
    assert all(t.dtype in (torch.float32, torch.float64) for t in tensors(found))


@every_tracker
@every_stream
def test_moments_are_exact(name, stream):
    minibatches = STREAMS[stream]()
    tracker, expected = TRACKERS[name](K), exact(minibatches)
    moments = tracker.moments(follow(tracker, minibatches))
    assert moments.rows == expected.rows
    assert moments.mean_D.dtype == moments.total_variance.dtype == torch.float64
    np.testing.assert_allclose(moments.mean_D.numpy(), expected.mean_D, rtol=1e-12, atol=1e-13)
    assert float(moments.total_variance) == pytest.approx(expected.total_variance, rel=1e-11)


@every_tracker
@every_stream
def test_components_are_orthonormal_ordered_and_of_fixed_sign_after_every_update(name, stream):
    tracker, state, seen = TRACKERS[name](K), None, []
    for x_TD in STREAMS[stream]():
        state = tracker.update(state, x_TD)
        seen.append(x_TD)
        found = tracker.components(state)
        v_KD = found.v_KD.double()
        assert v_KD.shape == (K, x_TD.shape[1])
        torch.testing.assert_close(v_KD @ v_KD.mT, torch.eye(K, dtype=torch.float64), rtol=0, atol=2e-6)
        largest_K = v_KD.gather(1, v_KD.abs().argmax(dim=1, keepdim=True))
        assert (largest_K > 0).all()
        assert (found.singular_values_K.diff() <= 0).all() and (found.singular_values_K >= 0).all()
        assert (found.explained_variance_ratio_K >= 0).all()
        assert float(found.explained_variance_ratio_K.sum()) <= 1 + 1e-6
        squares_K = found.singular_values_K.double().square()
        all_TD = torch.cat(seen).double()
        total = (all_TD - all_TD.mean(dim=0)).square().sum()
        torch.testing.assert_close(found.explained_variance_ratio_K.double(), squares_K / total, rtol=1e-6, atol=1e-9)


@every_tracker
@every_stream
def test_captured_variance_is_near_the_exact_one(name, stream):
    minibatches = STREAMS[stream]()
    tracker, expected = TRACKERS[name](K), exact(minibatches)
    found = tracker.components(follow(tracker, minibatches))
    assert -1e-6 < expected.deficit(found.v_KD) < WORST_DEFICIT[name]
    exact_ratios_K = expected.eigenvalues_D[:K].clamp_min(0) / expected.total_variance
    torch.testing.assert_close(
        found.explained_variance_ratio_K.double(), exact_ratios_K, rtol=0, atol=WORST_DEFICIT[name] + 1e-9
    )


def streams_of_groups() -> list[list[torch.Tensor]]:
    """Minibatches by group, of mixed shapes and dtypes, three ill-conditioned ones among those of one shape.

    Groups come in at their first minibatch that is not None: the sixth one late, beside others that are warm.
    """
    like = [decaying(48, 40, 6, drift=0.02, seed=seed) for seed in range(3)]
    ill = [massive(48, 40, 6), constant_plus_noise(48, 40, 6), [torch.full((40, 48), 2.0)] * 6]
    late = [None, None, *decaying(48, 40, 4, seed=7)]
    short_first = [decaying(48, K + 1, 1)[0], *decaying(48, 40, 5)]
    other = [decaying(24, 40, 6), decaying(48, 31, 6), [x.bfloat16() for x in like[1]], [x.double() for x in like[2]]]
    return [like[0], ill[0], like[1], ill[1], late, ill[2], like[2], short_first, *other]


@every_tracker
def test_groups_updated_together_are_as_those_updated_one_by_one(name):
    tracker, streams = TRACKERS[name](K), streams_of_groups()
    together, alone = [None] * len(streams), [None] * len(streams)
    for at in range(6):
        here = [i for i, stream in enumerate(streams) if stream[at] is not None]
        rows = [streams[i][at] for i in here]
        before = copy.deepcopy((rows, [together[i] for i in here]))
        found = tracker.update_many([together[i] for i in here], rows)
        assert len(found) == len(here)
        assert all(torch.equal(x, y) for x, y in zip(rows, before[0], strict=True))
        assert all(known is None or same(together[i], known) for i, known in zip(here, before[1], strict=True))
        for i, state, x_TD in zip(here, found, rows, strict=True):
            together[i], alone[i] = state, tracker.update(alone[i], x_TD)
        for i in here:
            assert_as_good(tracker, together[i], alone[i])
    assert tracker.update_many([], []) == []


def assert_as_good(tracker, together, alone):
    """Moments to float64 rounding; components to 1e-6 of the largest, in the directions that carry variance."""
    a, b = tracker.moments(together), tracker.moments(alone)
    assert a.rows == b.rows
    torch.testing.assert_close(a.mean_D, b.mean_D, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(a.total_variance, b.total_variance, rtol=1e-12, atol=0)
    a, b = tracker.components(together), tracker.components(alone)
    largest = float(b.singular_values_K[0])
    torch.testing.assert_close(a.singular_values_K, b.singular_values_K, rtol=1e-5, atol=1e-6 * largest)
    spread_KD = a.singular_values_K[:, None] * a.v_KD, b.singular_values_K[:, None] * b.v_KD
    assert all(x.isfinite().all() for x in spread_KD)
    torch.testing.assert_close(
        spread_KD[0].mT @ spread_KD[0], spread_KD[1].mT @ spread_KD[1], rtol=0, atol=1e-5 * largest**2
    )


@every_tracker
def test_states_of_groups_that_are_updated_together_share_no_memory(name):
    """A group that stops, or moves to another worker, must not keep or carry the others' along."""
    tracker, streams = TRACKERS[name](K), [decaying(48, 40, 2, seed=seed) for seed in range(3)]
    states = [None] * 3
    for rows in zip(*streams, strict=True):
        states = tracker.update_many(states, list(rows))
    storages = [{held.untyped_storage().data_ptr() for held in tensors(state)} for state in states]
    assert sum(map(len, storages)) == len(set().union(*storages))
    if name == "subspace":
        assert all(held.untyped_storage().nbytes() == held.nbytes for state in states for held in tensors(state))


@every_tracker
def test_an_input_that_never_varies_explains_nothing_rather_than_nan(name):
    tracker = TRACKERS[name](K)
    found = tracker.components(follow(tracker, [torch.full((40, 48), 2.0)] * 3))
    assert found.explained_variance_ratio_K.tolist() == [0.0] * K
    assert all(torch.isfinite(t).all() for t in tensors(found))


@every_tracker
def test_one_row_changes_rows_and_mean(name):
    tracker = TRACKERS[name](1)
    state = follow(tracker, [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])])
    assert tracker.moments(state).rows == 2
    assert tracker.moments(state).mean_D.tolist() == [2.0, 2.0, 2.0]
    assert float(tracker.moments(state).total_variance) == pytest.approx(4.0)
    direction_D = tracker.components(state).v_KD[0].double() * 2**0.5
    torch.testing.assert_close(direction_D.abs(), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-6)
    assert direction_D.sum().abs() < 1e-6


@every_tracker
def test_a_state_goes_to_named_tensors_and_back_and_on_to_the_same_bits(name):
    tracker, minibatches = TRACKERS[name](K), decaying(48, 40, 6, drift=0.02)
    state = follow(tracker, minibatches[:4])
    named = to_tensors(state)
    assert {"moments.rows", "moments.mean_D", "moments.total_variance"} < named.keys()
    assert all(t.is_contiguous() and t.device.type == "cpu" for t in named.values())
    assert {t.untyped_storage().data_ptr() for t in named.values()}.isdisjoint(
        t.untyped_storage().data_ptr() for t in tensors(state)
    )
    again = from_tensors(tracker.state_type, named)
    assert type(again) is type(state) and again.moments.rows == state.moments.rows and same(again, state)
    for x_TD in minibatches[4:]:
        state, again = tracker.update(state, x_TD), tracker.update(again, x_TD)
    assert same(again, state)
    with pytest.raises(KeyError):
        from_tensors(tracker.state_type, {key: value for key, value in named.items() if key != "moments.rows"})


def bytes_held(*values) -> int:
    """Memory of all tensors in these, what they share counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for v in values for t in tensors(v)}
    return sum(storages.values())


def peak_bytes(work) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = work()
    events = profiled.profiler.kineto_results.events()
    assert kept is not None
    return max(itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]"))


@every_tracker
@pytest.mark.parametrize(("rows", "in_features", "k"), [(96, 64, 6), (300, 512, 32), (150, 40, 24)])
def test_cost_tells_the_bytes_of_a_state(name, rows, in_features, k):
    tracker = TRACKERS[name](k)
    state = follow(tracker, decaying(in_features, rows, 4))
    cost = tracker.cost(rows, in_features)
    assert cost.state_bytes == bytes_held(state, tracker.components(state))
    assert tracker.cost(rows, in_features, groups=3).state_bytes == 3 * cost.state_bytes


@every_tracker
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "in_features", "k"), [(512, 576, 32), (2048, 576, 32), (256, 1024, 64)])
def test_cost_tells_the_peak_of_an_update(name, dtype, rows, in_features, k):
    tracker = TRACKERS[name](k)
    minibatches = [x_TD.to(dtype) for x_TD in decaying(in_features, rows, 3)]
    state = follow(tracker, minibatches)

    def update():
        after = tracker.update(state, minibatches[0])
        return after, tracker.components(after)

    measured = peak_bytes(update)
    assert measured == pytest.approx(tracker.cost(rows, in_features, dtype.itemsize).workspace_bytes, rel=0.1)
