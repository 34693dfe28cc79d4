"""Faults while a pass runs: it ends right, or with a clear error; nothing half-written, no process left.

`make faults` ends with a table: fault, detected in, lost steps, outcome.
"""

import os
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import tests.cluster.trap
from eva_dist.cluster.checkpoint import CheckpointFolder
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.config import OnMaxSteps, Resume
from eva_dist.errors import PreemptedError, WorkerFailedError
from eva_dist.run.observer import SweepObserver
from eva_dist.run.prepare import prepare
from eva_dist.run.sweep import precompute
from tests.cluster.faults import artifact_of, half_written, least_cosine, wait_until
from tests.gang_processes import without_ray, worker_pids
from tests.several_processes import SeveralProcesses
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("gangs")

STEPS = 12
LONG = {
    "eva": {"tau": 1.0, "max_steps": STEPS, "on_max_steps": OnMaxSteps.accept},
    "cluster": {"checkpoint_every": 2, "max_failures": 2, "wait_s": 2.0, "heartbeat_s": 6.0},
}


@pytest.fixture(scope="module")
def truth(tiny_model, words_file, tmp_path_factory):
    """Artifacts of runs that nothing disturbed, by number of workers; Ray's have to be the same."""
    found = {}
    with without_ray(SeveralProcesses):
        for workers in (1, 2):
            folder = tmp_path_factory.mktemp("truth")
            cluster = {**LONG["cluster"], "num_workers": workers}
            run = prepare(tiny_config(tiny_model, words_file, folder, eva=LONG["eva"], cluster=cluster))
            found[workers] = precompute(run, time.perf_counter())
            assert not run.store.checkpoints.exists()
    return found


@pytest.fixture
def table(table, gangs):
    """Rows say where the gang lived: each fault has two."""
    return SimpleNamespace(add=lambda fault, *found: table.add(f"{fault} ({gangs})", *found))


class Watch(SweepObserver):
    """Notes when each step was done, and does harm after one of them."""

    def __init__(self, after, harm):
        self.after, self.harm, self.done, self.times = after, harm, False, []

    def on_point_step(self, point, state):
        self.times.append((state.steps, time.monotonic()))
        if state.steps == self.after and not self.done:
            self.done = True
            self.harm()

    @property
    def lost(self):
        """Steps that were done twice."""
        steps = [step for step, _ in self.times]
        return len(steps) - len(set(steps))


def run_with(prepared, watch, **changes):
    run = prepared(**{group: {**LONG.get(group, {}), **changes.get(group, {})} for group in {*LONG, *changes}})
    return run, precompute(run, time.perf_counter(), watch)


def check(run, outcome, truth, workers=2):
    assert (outcome.steps, outcome.status) == (STEPS, "not_converged")
    assert artifact_of(run.store.root / "tests/tiny" / outcome.revision) == artifact_of(
        Path(truth[workers].url.removeprefix("file://"))
    )
    assert half_written(run.store.root) == [] and not run.store.checkpoints.exists()
    wait_until(lambda: worker_pids() == [], 10)


def seconds_of(caplog, after):
    """Seconds from the harm until the failure was said."""
    said = [
        record.created for record in caplog.records if "after step" in record.message and "workers:" in record.message
    ]
    return said[0] - after


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_worker_is_killed_at_a_random_step(prepared, truth, table, caplog, seed):
    dice = random.Random(seed)
    when, step, victim = [], dice.randrange(1, STEPS - 1), dice.randrange(2)

    def kill():
        when.append(time.time())
        os.kill(worker_pids()[victim], signal.SIGKILL)

    watch = Watch(step, kill)
    run, outcome = run_with(prepared, watch)
    check(run, outcome, truth)
    table.add(f"kill -9 of worker {victim} after step {step}", seconds_of(caplog, when[0]), watch.lost, "same bits")
    assert watch.lost <= 4  # a checkpoint every 2 steps, written beside the next ones


def test_a_worker_hangs(prepared, truth, table, caplog):
    """A process that stands still gives no sign of life; `cluster.timeout_s` is not waited for."""
    when = []

    def stop():
        when.append(time.time())
        os.kill(worker_pids()[1], signal.SIGSTOP)

    watch = Watch(5, stop)
    run, outcome = run_with(prepared, watch, cluster={"timeout_s": 300.0})
    check(run, outcome, truth)
    detected = seconds_of(caplog, when[0])
    assert 6 <= detected < 30
    assert re.search(r"global_rank \d gave no sign of life in \w+ for cluster\.heartbeat_s=6", caplog.text)
    table.add("SIGSTOP of a worker (cluster.heartbeat_s=6)", detected, watch.lost, "same bits")


@pytest.fixture
def trapped(monkeypatch):
    monkeypatch.setattr("eva_dist.cluster.ray_place.as_actor", tests.cluster.trap.as_actor)
    monkeypatch.setattr("tests.several_processes.make_worker", tests.cluster.trap.make_worker)


@pytest.mark.usefixtures("trapped")
def test_a_worker_raises_once(prepared, truth, table, caplog, tmp_path):
    when = []

    def spring():
        when.append(time.time())
        (tmp_path / "trap").write_text("once 0")

    watch = Watch(5, spring)
    run, outcome = run_with(prepared, watch)
    check(run, outcome, truth)
    assert "RuntimeError: it snapped" in caplog.text
    table.add("a worker raises, once", seconds_of(caplog, when[0]), watch.lost, "same bits")


@pytest.mark.usefixtures("trapped")
def test_a_worker_raises_the_same_again_and_the_run_ends_with_a_report(prepared, table, caplog, tmp_path):
    (tmp_path / "trap").write_text("always 5")
    watch = Watch(-1, None)
    with pytest.raises(WorkerFailedError) as caught:
        run_with(prepared, watch)
    lines = str(caught.value).splitlines()
    assert lines[0] == "gave up: the same error twice at step 5: a third try would end the same way"
    assert re.fullmatch(
        r"  1\. raised after step 5 on 2 workers: global_rank 0 failed in step.*RuntimeError: it snapped", lines[1]
    )
    assert lines[2].startswith("  2. raised after step 5 on 2 workers") and "RuntimeError: it snapped" in lines[-1]
    store = tmp_path / "store"
    assert half_written(store) == [] and not (store / "snapshots").exists()
    wait_until(lambda: worker_pids() == [], 10)
    table.add("a worker raises at step 5, always", None, watch.lost, "clear error, checkpoint kept")


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(prepared, truth, table, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eva_dist.cluster.checkpoint.save_file", full)
    run, outcome = run_with(prepared, Watch(-1, None))
    check(run, outcome, truth)
    assert "the checkpoint after step 2 could not be written ([Errno 28] No space left on device)" in caplog.text
    table.add("disk full while checkpointing", None, 0, "warning; same bits")


def test_the_newest_checkpoint_is_cut_in_half(prepared, truth, table, caplog):
    def hurt():
        folder = CheckpointFolder(run.store.checkpoints, run.fingerprint, 2).folder
        wait_until(lambda: not list(folder.glob(".incoming*")), 10)
        newest = sorted(folder.glob("step-*"))[-1]
        file = newest / "group-00000.safetensors"
        os.truncate(file, file.stat().st_size // 2)
        os.kill(worker_pids()[0], signal.SIGKILL)

    run = prepared(**LONG)
    watch = Watch(9, hurt)
    outcome = precompute(run, time.perf_counter(), watch)
    check(run, outcome, truth)
    assert "group-00000.safetensors differs from its sha256" in caplog.text
    table.add("newest checkpoint cut in half, then kill -9", None, watch.lost, "the one before it; same bits")


@pytest.mark.parametrize(
    ("workers", "shard_size"), [(1, 1), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((2, 2), (3, 1)))]
)
def test_a_run_goes_on_with_another_number_of_workers(prepared, truth, table, workers, shard_size):
    """The first run is ended by SIGTERM's request; the second has another topology."""
    stop = StopRequest()
    first = prepared(**LONG)
    with pytest.raises(PreemptedError, match=r"asked to end \(SIGTERM\): checkpoint after step 5; the same command"):
        precompute(first, time.perf_counter(), Watch(5, stop.make), stop)
    wait_until(lambda: worker_pids() == [], 10)
    assert half_written(first.store.root) == [] and not (first.store.root / "snapshots").exists()
    watch = Watch(-1, None)
    topology = {"num_workers": workers, "shard_size": shard_size}
    run, outcome = run_with(prepared, watch, cluster=topology)
    assert watch.times[0][0] == 6 and outcome.steps == STEPS
    least = least_cosine(outcome.url, truth[2].url)
    assert least >= 0.9999
    assert not run.store.checkpoints.exists()
    table.add(
        f"pre-empted on 2 workers, resumed on {workers}{', sharded' if shard_size > 1 else ''}",
        None,
        watch.lost,
        f"same ranks, least cosine {least:.7f}",
    )


def test_a_run_may_begin_anew_although_there_is_a_checkpoint(prepared, truth):
    stop = StopRequest()
    with pytest.raises(PreemptedError):
        precompute(prepared(**LONG), time.perf_counter(), Watch(3, stop.make), stop)
    run = prepared(**LONG)
    run = replace(run, config=replace(run.config, resume=Resume.never))
    watch = Watch(-1, None)
    check(run, precompute(run, time.perf_counter(), watch), truth)
    assert watch.times[0][0] == 1
