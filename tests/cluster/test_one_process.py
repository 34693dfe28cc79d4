"""One worker without Ray, in a process beside the driver; what may happen to it is in test_faults and test_gang."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from eva_dist.cluster import one_process
from eva_dist.cluster.environment import needs_no_ray
from eva_dist.cluster.gang import Gang
from eva_dist.cluster.one_process import OneProcess, WorkerProcess, worker_ahead
from eva_dist.cluster.placement import Request
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.cluster.workers import CallError
from eva_dist.config import ClusterConfig, OnMaxSteps, SolverName
from eva_dist.errors import (
    GangTimeoutError,
    PlacementError,
    WorkerFailedError,
)
from eva_dist.run.sweep import precompute
from tests.cluster.faults import artifact_of, half_written
from tests.gang_processes import assignment_of, run_alone, without_ray, worker_pids
from tests.observers import Watching

ONE = {"num_workers": 1}
LONG = {
    "eva": {"tau": 1.0, "max_steps": 12, "on_max_steps": OnMaxSteps.accept},
    "cluster": {**ONE, "checkpoint_every": 2, "max_failures": 2, "wait_s": 2.0, "heartbeat_s": 3.0},
}


def ignore(state):
    """Take no notice of progress."""


@pytest.fixture
def pids():
    """What finds the processes that were started."""
    with without_ray():
        yield worker_pids
        assert worker_pids() == []


def compute(run, *options):
    return precompute(run, time.perf_counter(), *options)


def tensors_of(run, outcome):
    assert half_written(run.store.root) == [] and not run.store.checkpoints.exists()
    return artifact_of(run.store.root / "tests/tiny" / outcome.revision)


def test_a_run_whose_worker_is_killed(pids, prepared, tmp_path, caplog):
    """It goes on from the last checkpoint, and ends with the same bits as one that nothing disturbed."""
    truth = prepared(**LONG, store={"url": str(tmp_path / "truth")})
    run, steps = prepared(**LONG), []

    def hurt(state):
        steps.append(state.steps)
        if len(steps) == 7:
            os.kill(pids()[0], signal.SIGKILL)

    assert tensors_of(run, compute(run, Watching(hurt))) == tensors_of(truth, compute(truth))
    assert steps[:7] == [*range(1, 8)] and 4 <= steps[7] <= 8 and steps[-1] == 12
    assert "global_rank 0 died in step" in caplog.text and "retry with 1 workers" in caplog.text


def test_what_was_summed_up_and_the_components_come_over(pids, prepared, tmp_path):
    run = prepared(cluster=ONE, solver={"name": SolverName.covariance, "keep_covariance": True})
    result = run_alone(assignment_of(run), ignore, None, None, tmp_path)
    assert {name.rpartition(".")[0] for name in load_file(result.covariance)} == {
        group.tap for group in result.state.plan.groups
    }
    assert set(result.components) == {group.index for group in result.state.plan.groups}


def test_a_device_that_cannot_be_had_is_said_by_the_first_call(pids, prepared, monkeypatch):
    """The worker cannot be made."""
    monkeypatch.setattr(OneProcess, "nodes", lambda self: [{"CPU": 2.0, "GPU": 1.0}])
    with pytest.raises(WorkerFailedError, match=r"(?s)global_rank 0 failed in join.*device_id cuda:0 does not match"):
        run_alone(assignment_of(prepared(cluster=ONE)), ignore)


def test_more_than_the_machine_has_is_refused_before_a_process_is_started(pids, prepared):
    run = prepared(cluster=ONE | {"resources": {"CPU": 1.0, "GPU": 9.0}})
    with pytest.raises(PlacementError, match=r"1 workers of CPU=1 GPU=9 each do not fit.* room for 0"):
        run_alone(assignment_of(run), ignore)


def test_status_answers_while_another_call_runs(pids, prepared):
    assignment = assignment_of(prepared(cluster=ONE))
    with Gang.start(OneProcess(), assignment, Request(1, 1, {"CPU": 1.0}), StopRequest()) as gang:
        loading = gang.workers.ask(0, "load")
        doing = set()
        while not gang.workers.wait([loading], 0.0):
            doing.add(gang.call_one(0, "status").doing)
        assert doing <= {"start", "load"} and doing and gang.workers.answer(loading) is None
        with pytest.raises(CallError, match="no attribute 'nonsense'"):
            gang.workers.answer(gang.workers.ask(0, "nonsense"))


class TestStartedAhead:
    @pytest.fixture(autouse=True)
    def not_connected(self, monkeypatch):
        monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests of this process may be
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def test_the_run_takes_it(self, pids, prepared, configure):
        with worker_ahead(configure(cluster=ONE).cluster):
            ahead = pids()
            seen = []
            run_alone(assignment_of(prepared(cluster=ONE)), lambda state: seen.append(pids()))
        assert len(ahead) == 1 and seen[0] == ahead

    def test_one_with_other_threads_is_left_alone_and_ends_with_its_context(self, pids, prepared, configure):
        with worker_ahead(configure(cluster=ONE | {"threads_per_worker": 3}).cluster):
            ahead, seen = pids(), []
            run_alone(assignment_of(prepared(cluster=ONE)), lambda state: seen.append(pids()))
            assert pids() == ahead and len(seen[0]) == 2
        assert pids() == []

    def test_none_is_started_for_more_workers_or_a_cluster(self, pids, monkeypatch):
        for cluster in (ClusterConfig(num_workers=2), ClusterConfig(address="auto")):
            with worker_ahead(cluster):
                assert pids() == []


def test_what_needs_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    alone = ClusterConfig()
    assert needs_no_ray(alone) and needs_no_ray(replace(alone, address="local", resources={"GPU": 1.0}))
    for change in ({"num_workers": 2}, {"address": "auto"}, {"resources": {"TPU": 1.0}}):
        assert not needs_no_ray(replace(alone, **change)), change
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    assert not needs_no_ray(alone)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not needs_no_ray(alone)


def test_a_fresh_process_ends_with_the_one_that_started_it():
    """Also in the middle of its imports, and whatever is sent to the whole process group."""
    code = (
        "import os, sys, time; from eva_dist.cluster.one_process import WorkerProcess; w = WorkerProcess({}); "
        "print(w._process.pid, flush=True); time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(driver.stdout.readline())
    time.sleep(1.0)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(pid, 0)  # it is there
    driver.kill()
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 10
    while _is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_that_stands_still_does_not_hold_up_who_asks_it(pids, prepared):
    """What is sent is more than a socket holds."""
    assignment = assignment_of(prepared(cluster=ONE | {"heartbeat_s": 2.0}))
    with Gang.start(OneProcess(), assignment, Request(1, 1, {"CPU": 1.0}), StopRequest()) as gang:
        gang.meet()
        os.kill(pids()[0], signal.SIGSTOP)
        with pytest.raises(GangTimeoutError, match=r"gave no sign of life in receive for cluster\.heartbeat_s=2"):
            gang.call_one(0, "receive", {0: {0: b"0" * 2**24}})


def test_a_fresh_process_does_a_whole_run(prepared, monkeypatch, tmp_path):
    """As `jobs/precompute.py` has it, from a folder whose files are called like modules."""
    (tmp_path / "queue.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eva_dist.cluster.place.needs_no_ray", lambda cluster: True)
    monkeypatch.setattr(one_process, "start_process", _COLD)
    assert compute(prepared(cluster=ONE)).status == "done"


def test_a_process_that_cannot_import_what_it_needs_is_lost_at_once(monkeypatch, tmp_path):
    (tmp_path / "datasets.py").write_text("raise ImportError('out of luck')")
    monkeypatch.setattr(one_process, "start_process", _COLD)
    process = WorkerProcess({"PYTHONPATH": str(tmp_path)})
    with pytest.raises(CallError, match="ended with exit code 1") as caught:
        process.answer(process.ask(0, "status"))
    assert caught.value.is_lost
    process.end()


_COLD = one_process.start_process


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
