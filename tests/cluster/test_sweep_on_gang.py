"""A sweep on a gang: each point as its own run, failures apart, and nothing computed twice."""

import json
import os
import signal
import time

import pytest
from safetensors.torch import load_file

from eva_dist.calibration.controller import PointState
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.config import Budget, SweepMode
from eva_dist.errors import NotConvergedError, PreemptedError, StoreError, TooFewTokensError, WorkerLostError
from eva_dist.run.outcome import Outcome
from eva_dist.run.prepare import ReadCache, prepare
from eva_dist.run.sweep import compute_points, precompute
from tests.gang_processes import worker_pids
from tests.observers import Watching

pytestmark = pytest.mark.usefixtures("gangs")
ONE = {"num_workers": 1, "checkpoint_every": 2}
POINTS = {
    "rho 1": {"rho": 1.0, "tau": 0.9},
    "rho 2": {},
    "rho 2, strict": {"tau": 0.99},
    "rho 2, whitened": {"whiten": True},
    "too few steps": {"tau": 0.999, "max_steps": 2},
    "by parameters": {"budget": Budget.params, "rho": 3.0},
    "some layers": {"target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"q_proj": 2}},
    "more components than tokens": {"r": 30, "target_modules": ["down_proj"]},
}
FAILS = {"too few steps": NotConvergedError, "more components than tokens": TooFewTokensError}
SAME_NAME = ("some layers",)
"""The default name says rho, tau and whiten alone; the first point that has it keeps it."""
SHORT = {"max_length": 12, "step_size": 3}
"""Steps of fewer than 36 tokens."""


@pytest.fixture
def runs(configure):
    """Return prepared runs of the same store, one for each change of `eva`."""
    known = ReadCache()

    def make(points, **others):
        changed = {"cluster": ONE, "data": SHORT, **others}
        return [prepare(configure(eva=eva, **changed), known) for eva in points]

    return make


def compute(runs, stop=None, ended=None, point_step=None):
    return compute_points(runs, time.perf_counter(), Watching(point_step=point_step, answer=ended), stop)


def content(outcome, name="eva_state_dict.safetensors"):
    return (folder(outcome) / name).read_bytes()


def folder(outcome):
    from eva_dist.artifact.load import source_folder

    return source_folder(outcome.url)


def test_every_point_is_published_as_its_own_run_would_be_and_bad_ones_cost_no_other(runs, configure, tmp_path):
    seen: dict[int, list[PointState]] = {}
    order = []

    def watch(at, state):
        seen.setdefault(at, []).append(state)

    answers = dict(
        zip(
            POINTS,
            compute(runs(POINTS.values()), None, lambda at, answer: order.append(at), watch),
            strict=True,
        )
    )
    assert {name: type(answer) for name, answer in answers.items()} == {n: FAILS.get(n, Outcome) for n in POINTS}
    assert sorted(order) == list(range(len(POINTS)))
    for at, (name, answer) in enumerate(answers.items()):
        if isinstance(answer, Outcome):
            assert [state.steps for state in seen[at]] == list(range(1, answer.steps + 1))
            alone = prepare(configure(cluster=ONE, data=SHORT, eva=POINTS[name], store={"url": str(tmp_path / name)}))
            expected = precompute(alone, time.perf_counter())
            assert (answer.fingerprint, answer.steps) == (expected.fingerprint, expected.steps)
            own_name = expected.revision + (f"-{answer.fingerprint[:8]}" if name in SAME_NAME else "")
            assert (answer.tokens, answer.revision) == (expected.tokens, own_name)
            for file in ("eva_state_dict.safetensors", "adapter_model.safetensors", "adapter_config.json"):
                assert content(answer, file) == content(expected, file), (name, file)
            assert content(answer, "spectrum.parquet") == content(expected, "spectrum.parquet"), name
    assert len(list((tmp_path / "store" / ".checkpoints").iterdir())) == 1  # on_max_steps=accept goes on from there


def test_what_is_in_the_store_is_not_computed_again(runs):
    eva = [{}, {"tau": 0.95}, {"whiten": True}]
    first = compute(runs(eva[:2]))
    steps = []
    again = compute(runs(eva), point_step=lambda at, state: steps.append(at))
    assert [answer.status for answer in again] == ["cached", "cached", "done"]
    assert [answer.fingerprint for answer in again[:2]] == [answer.fingerprint for answer in first]
    assert set(steps) == {2}


def test_a_sweep_that_was_stopped_goes_on_where_it_was(runs, tmp_path):
    """The loose point is published before the signal; the others go on from the checkpoint."""
    eva = [{"tau": 0.5}, {"tau": 0.99}, {"tau": 0.98, "rho": 1.0}]
    whole = compute(runs(eva, store={"url": str(tmp_path / "whole")}))
    stop, early = StopRequest(), []
    last = whole[0].steps + 3
    assert last < min(answer.steps for answer in whole[1:])

    published = tmp_path / "store" / "tests" / "tiny"

    def wait(point, state):
        """Once the loose point is published, ask the sweep to end."""
        if point == 1 and state.steps == last:
            deadline = time.monotonic() + 30
            while not published.is_dir() and time.monotonic() < deadline:
                time.sleep(0.05)
            stop.make()

    with pytest.raises(PreemptedError, match=f"checkpoint after step {last}"):
        compute(runs(eva), stop, lambda at, answer: early.append(at), wait)
    assert early == [0]
    steps = []
    answers = compute(runs(eva), point_step=lambda at, state: steps.append(state.steps) if at == 1 else None)
    assert [answer.status for answer in answers] == ["cached", "done", "done"]
    assert steps[0] == last + 1
    assert [content(answer) for answer in answers] == [content(answer) for answer in whole]
    assert not (tmp_path / "store" / ".checkpoints").exists()


def test_a_point_that_cannot_be_published_costs_no_other(runs, monkeypatch):
    points = runs([{}, {"tau": 0.95}])
    really = type(points[0].store).publish

    def publish(self, fingerprint, *arguments, **options):
        if fingerprint == points[0].fingerprint:
            raise StoreError("the disk is full")
        return really(self, fingerprint, *arguments, **options)

    monkeypatch.setattr(type(points[0].store), "publish", publish)
    failed, good = compute(points)
    assert isinstance(failed, StoreError) and good.status == "done"


def test_what_nobody_foresaw_in_publishing_a_point_costs_no_other(runs, monkeypatch):
    points = runs([{}, {"tau": 0.95}])
    build = compute_points.__globals__["publish"]

    def publish(run, result):
        if run.fingerprint == points[0].fingerprint:
            raise ZeroDivisionError("a bug in a plot")
        return build(run, result)

    monkeypatch.setattr("eva_dist.run.sweep.publish", publish)
    failed, good = compute(points)
    assert isinstance(failed, ZeroDivisionError) and good.status == "done"


def test_points_that_have_ended_are_published_although_the_gang_is_lost_in_the_end(runs):
    """The worker dies after the loose point has ended; no other gang is built."""
    two = {"num_workers": 2, "checkpoint_every": 0, "max_failures": 0}
    eva = [{"tau": 0.5}, {"tau": 0.9999}]
    ends = []

    def kill(point, state):
        if point == 1:
            ends.append(state.steps)
        if point == 1 and state.steps == 12:
            os.kill(worker_pids()[0], signal.SIGKILL)

    loose, lost = compute(runs(eva, cluster=two), point_step=kill)
    assert loose.status == "done" and loose.steps < 12
    assert isinstance(lost, WorkerLostError) and ends[-1] == 12


def test_a_gang_of_two_that_loses_a_worker_goes_on_to_the_same_bits(runs, tmp_path):
    """Both points' SVDs come back from the checkpoint, those that are shared still as one."""
    two = {"num_workers": 2, "checkpoint_every": 4, "max_failures": 1, "wait_s": 60.0}
    eva = [{"tau": 0.97}, {"tau": 0.98, "rho": 1.0}]
    whole = compute(runs(eva, cluster=two, store={"url": str(tmp_path / "whole")}))
    killed = []

    def kill(point, state):
        if point == 0 and state.steps == 7 and not killed:
            killed.append(worker_pids()[0])
            os.kill(killed[0], signal.SIGKILL)

    assert min(answer.steps for answer in whole) > 7
    answers = compute(runs(eva, cluster=two), point_step=kill)
    assert killed and [content(answer) for answer in answers] == [content(answer) for answer in whole]
    assert [answer.steps for answer in answers] == [answer.steps for answer in whole]


def test_the_same_point_twice_is_published_once(runs, monkeypatch):
    built = []
    build = compute_points.__globals__["publish"].__globals__["build_artifact"]
    monkeypatch.setattr("eva_dist.run.publish.build_artifact", lambda *given: built.append(given) or build(*given))
    one, two = compute(runs([{}, {}]))
    assert (one.url, one.fingerprint) == (two.url, two.fingerprint) and len(built) == 1


def test_a_shared_tracker_is_another_artifact_and_near(runs):
    eva = [{"rho": 1.0, "r": 4}, {"rho": 3.0, "r": 8}]
    exact = compute(runs(eva))
    shared = compute(runs(eva, sweep={"mode": SweepMode.shared_tracker}))
    assert {a.fingerprint for a in exact}.isdisjoint({b.fingerprint for b in shared})
    assert [b.revision for b in shared] == [f"{a.revision}-shared" for a in exact]
    manifest = json.loads(content(shared[0], "manifest.json"))
    assert manifest["config"]["sweep"]["mode"] == "shared_tracker"
    near = [load_file(folder(answer) / "eva_state_dict.safetensors") for answer in (exact[0], shared[0])]
    assert near[0].keys() == near[1].keys()
    again = compute(runs(eva, sweep={"mode": SweepMode.shared_tracker}))
    assert [b.status for b in again] == ["cached", "cached"]
