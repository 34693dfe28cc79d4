"""What a driver takes of its members when a point ends: the sums, group by group, from whoever has them. No ray."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from eva_dist.calibration.controller import PointResult, first_state
from eva_dist.calibration.group_svds import GroupSvd, collect_components, collect_covariance, make_trackers
from eva_dist.cluster.attempts import Collector
from eva_dist.config import SolverConfig, SolverName
from eva_dist.errors import StoreError
from eva_dist.methods.eva import Eva
from eva_dist.numerics.covariance import CovarianceTracker, to_packed
from eva_dist.plan import make_layer, make_plan, share

INPUTS = [["a"], ["b", "c"], ["d"], ["e"]]


class Members:
    """Two members' answers, by the functions that a session has for them."""

    def __init__(self, plan, owned):
        self.plan, self.owned, self.asked = plan, owned, []

    def call(self, method, point):
        assert method == "components"
        return [collect_components(self.plan, svds, point) for svds in self.owned]

    def call_one(self, global_rank, method, point, group):
        assert method == "covariance"
        self.asked.append((global_rank, group))
        return collect_covariance(self.plan, self.owned[global_rank], point, group)


@pytest.fixture(scope="module")
def plans():
    """Two points; the second leaves `a` out and follows fewer components, so its groups have other numbers."""
    wide = [make_layer(name, 12, 12, 4, 2.0) for name in "abcde"]
    narrow = [make_layer(name, 12, 12, 2, 1.0) for name in "bcde"]
    return make_plan(wide, INPUTS, 2), make_plan(narrow, INPUTS[1:], 2)


@pytest.fixture(scope="module")
def members(plans):
    """Group `e` was never updated; the points have seen the same rows of `d`, and others of `b`."""
    plan = share(plans, 2)
    trackers = make_trackers(SolverConfig(SolverName.covariance), plan)
    generator = torch.Generator().manual_seed(0)
    owned = ({}, {})
    for group in plan.groups[:3]:
        by_point, state = {}, None
        for point in sorted(trackers[group.index]):
            if state is None or group.tap == "b":
                state = CovarianceTracker(8).update(state, torch.randn(20, 12, generator=generator))
            by_point[point] = GroupSvd(state, CovarianceTracker(8).components(state))
        owned[group.index % 2][group.index] = by_point
    return Members(plan, owned)


def begin(plan):
    return first_state(plan, Eva(0.9), 5, accept=True)


@pytest.mark.parametrize("point", [0, 1])
def test_each_point_gets_the_sums_that_are_its_own(plans, members, tmp_path, point):
    members.asked.clear()
    result = Collector(members, 1.5, 2, tmp_path)(begin(plans[point]), point)
    assert isinstance(result, PointResult) and result.state.seconds["load"] == 1.5
    found = load_file(result.covariance)
    taps = ["a", "b", "d"][point:]
    assert {name.rpartition(".")[0] for name in found} == set(taps)
    by_tap = {group.tap: group.index for group in members.plan.groups}
    assert members.asked == [(by_tap[tap] % 2, at) for at, tap in enumerate(taps)]
    for tap in taps:
        svd = members.owned[by_tap[tap] % 2][by_tap[tap]][point]
        for name, tensor in to_packed(svd.state).items():
            assert torch.equal(found[f"{tap}.{name}"], tensor), (tap, name)
        own = next(group for group in plans[point].groups if group.tap == tap)
        tracker = CovarianceTracker(own.n_components)
        assert torch.equal(result.components[own.index].v_KD, tracker.components(svd.state).v_KD)
    assert len(result.components[len(taps)].v_KD) == 0


def test_without_a_place_for_them_nobody_is_asked(plans, members):
    members.asked.clear()
    result = Collector(members, 0.0, 2)(begin(plans[0]), 0)
    assert result.covariance is None and members.asked == []


def test_a_disk_that_is_full_costs_the_point_not_the_pass(plans, members, tmp_path):
    error = Collector(members, 0.0, 2, tmp_path / "gone")(begin(plans[0]), 0)
    assert isinstance(error, StoreError) and "solver.keep_covariance=false" in str(error) and "TMPDIR" in str(error)


def test_the_file_of_another_attempt_is_replaced(plans, members, tmp_path):
    collect, state = Collector(members, 0.0, 2, tmp_path), begin(plans[0])
    first = collect(state, 0).covariance.read_bytes()
    (tmp_path / "point-0000.safetensors").write_bytes(first * 2)
    assert collect(replace(state, steps=1), 0).covariance.read_bytes() == first
