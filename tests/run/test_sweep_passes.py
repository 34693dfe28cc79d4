"""Which points share their forwards, what each is called, and what names a pass."""

from dataclasses import replace

import pytest

from eva_dist.config import SweepMode
from eva_dist.errors import ConfigError
from eva_dist.run.prepare import ReadCache, assignment, prepare
from eva_dist.run.sweep import compute_points, passes

SHARED = {"mode": SweepMode.shared_tracker}


@pytest.fixture
def points(configure):
    """Return prepared runs; each is said by the groups that it changes."""
    known = ReadCache()
    return lambda *changes: [prepare(configure(**change), known) for change in changes]


def test_what_eva_is_asked_for_may_differ(points):
    different = [
        {"rho": 1.0},
        {"tau": 0.5},
        {"r": 2},
        {"whiten": True},
        {"rank_pattern": {"q_proj": 2}},
        {"adjust_scaling_factors": False},
        {"max_steps": 3},
        {"lora_alpha": 3},
        {"exclude_modules": ["k_proj"]},
    ]
    runs = points({}, *({"eva": eva} for eva in different))
    assert passes(runs) == [tuple(range(10))]
    assert len({run.fingerprint for run in runs}) == 10


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"step_size": 5}},
        {"data": {"seed": 1}},
        {"data": {"max_length": 32}},
        {"model": {"config_overrides": {"num_hidden_layers": 1}}},
        {"solver": {"seed": 1}},
        {"eva": {"label_mask_value": -1}},
        {"cluster": {"num_workers": 1}},
        {"store": {"url": "another"}},
    ],
)
def test_what_changes_the_stream_has_a_pass_of_its_own(points, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert passes(points({}, other, {"eva": {"tau": 0.5}})) == [(0, 2), (1,)]


def test_targets_are_shared_where_one_set_contains_the_other(points):
    names = [["q_proj"], ["q_proj", "v_proj", "o_proj"], ["up_proj"], ["v_proj"], ["up_proj", "down_proj"]]
    runs = points(*({"eva": {"target_modules": some}} for some in names))
    found = passes(runs)
    assert sorted(found) == [(1, 0, 3), (4, 2)]
    for group in found:
        widest = {layer.name for layer in assignment(*(runs[point] for point in group)).layers}
        assert widest == {layer.name for layer in runs[group[0]].targets.layers}


def test_points_that_differ_after_the_pass_have_one_pass_in_common(points):
    scaling = {"adjust_scaling_factors": False, "lora_alpha": 1}
    plain, whitened, scaled, looser = points({}, *({"eva": eva} for eva in ({"whiten": True}, scaling, {"tau": 0.5})))
    assert plain.pass_key == whitened.pass_key == scaled.pass_key != looser.pass_key


def test_what_was_read_for_one_point_is_not_read_again(configure, monkeypatch):
    known, read = ReadCache(), []
    really = prepare.__globals__["open_rows"]
    monkeypatch.setattr("eva_dist.run.prepare.open_rows", lambda config: read.append(config) or really(config))
    runs = [prepare(configure(eva={"rho": rho}), known) for rho in (1.0, 1.5, 2.0)]
    assert len(read) == 1 and len({run.data["digest"] for run in runs}) == 1
    prepare(configure(data={"max_length": 32}), known)
    assert len(read) == 2
    assert prepare(configure()).fingerprint == runs[2].fingerprint


def test_one_name_for_several_points_is_refused_before_anything_starts(points):
    runs = points(*({"eva": {"tau": tau}, "artifact": {"revision": "mine"}} for tau in (0.5, 0.6)))
    answers = compute_points(runs, 0.0)
    assert all(isinstance(answer, ConfigError) for answer in answers)
    assert str(answers[0]).startswith("artifact.revision=mine is asked for by 2 points of the sweep; leave it null")


def test_a_shared_tracker_is_part_of_a_name(points):
    """With whom a point shares its trackers decides its numbers; alone it has its own."""
    exact, shared = points({"eva": {"rho": 1.0}}, {"eva": {"rho": 1.0}, "sweep": SHARED})
    assert exact.fingerprint == shared.fingerprint and shared.revision == "rho1.0-tau0.9"
    companions = replace(shared, decisive=shared.decisive | {"shared_tracker": ["a", "b"]})
    assert companions.fingerprint != exact.fingerprint and companions.revision == "rho1.0-tau0.9-shared"
