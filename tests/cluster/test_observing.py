"""What can be seen of a run from outside: workers' status, their logs, Ray's metrics, and who computes what."""

import logging
import os
import re
import signal
import threading
import time
import urllib.request

import pytest
import ray

from eva_dist.calibration.controller import PointState
from eva_dist.cluster.connect import connected
from eva_dist.cluster.gang import Gang
from eva_dist.cluster.lock import exclusive_run
from eva_dist.cluster.metrics import PassMetrics
from eva_dist.cluster.placement import Request
from eva_dist.cluster.ray_place import RayPlace
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.config import ClusterConfig
from eva_dist.errors import GangError, GangTimeoutError, PreemptedError
from eva_dist.run.sweep import precompute
from tests.cluster.faults import artifact_of
from tests.gang_processes import assignment_of, run_alone, without_ray, worker_pids
from tests.observers import Watching
from tests.several_processes import SeveralProcesses

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]
FINGERPRINT = "ab" * 32


def test_status_answers_while_a_worker_waits_in_a_collective(prepared):
    """One member joins, the other never does."""
    assignment = assignment_of(prepared())
    with Gang.start(
        RayPlace(assignment.config.cluster), assignment, Request(2, 1, {"CPU": 1.0}), StopRequest()
    ) as gang:
        address = gang.call_one(0, "address")
        waiting = gang.workers.ask(0, "join", address)
        first, second = gang.call("status")
        while first.doing != "join":
            first = gang.call_one(0, "status")
        time.sleep(1.0)
        later = gang.call_one(0, "status")
        assert gang.workers.wait([waiting], 0.0) == []
        assert (later.doing, later.global_rank, later.pid in worker_pids()) == ("join", 0, True)
        assert later.for_s >= 1.0 and second.doing == "start"
        assert re.fullmatch(rf"global_rank 0 \(\S+, pid {later.pid}\) is in join for \d+ s", str(later))


def test_a_gang_that_loses_an_actor_goes_on_to_the_bits_of_one_without_ray(prepared, tmp_path):
    """What else may happen to a gang is in test_faults, with Ray among the slow tests."""
    cluster = {"checkpoint_every": 2, "max_failures": 1, "wait_s": 2.0}
    whole, hurt = (prepared(cluster=cluster, store={"url": str(tmp_path / name)}) for name in ("whole", "hurt"))
    with without_ray(SeveralProcesses):
        expected = precompute(whole, time.perf_counter())
    killed = []

    def kill(state):
        if state.steps == 5 and not killed:
            killed.append(worker_pids()[0])
            os.kill(killed[0], signal.SIGKILL)

    found = precompute(hurt, time.perf_counter(), Watching(kill))
    assert killed and found.steps == expected.steps > 5
    assert artifact_of(tmp_path / "hurt/tests/tiny" / found.revision) == artifact_of(
        tmp_path / "whole/tests/tiny" / expected.revision
    )


def test_one_driver_computes_and_the_others_wait(caplog):
    order, inside = [], threading.Event()

    def first():
        with exclusive_run(FINGERPRINT, StopRequest()):
            order.append("first")
            inside.set()
            time.sleep(1.5)
            order.append("first is done")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(20)
    with caplog.at_level(logging.WARNING), exclusive_run(FINGERPRINT, StopRequest()):
        order.append("second")
    thread.join()
    assert order == ["first", "first is done", "second"]
    assert f"computes {FINGERPRINT[:16]} already; waiting for it" in caplog.text
    caplog.clear()
    with exclusive_run(FINGERPRINT, StopRequest()):
        assert caplog.text == ""  # nothing is left of them: there is no wait


def test_who_waits_can_be_asked_to_end():
    stop = StopRequest()
    with exclusive_run(FINGERPRINT, StopRequest()):
        stop.make()
        with pytest.raises(PreemptedError, match="another driver computes the same"), exclusive_run(FINGERPRINT, stop):
            pass


def test_two_that_ask_for_the_same_get_one_computation(prepared):
    """Threads stand for drivers: the second is answered from the store when the first has published."""
    runs, outcomes, steps = [prepared(), prepared()], {}, {0: 0, 1: 0}

    def go(at):
        def count(state):
            steps[at] += 1

        outcomes[at] = precompute(runs[at], time.perf_counter(), Watching(count))

    threads = [threading.Thread(target=go, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(outcome.status for outcome in outcomes.values()) == ["cached", "done"]
    assert sorted(steps.values())[0] == 0 < sorted(steps.values())[1]
    assert outcomes[0].url == outcomes[1].url


def test_metrics_reach_rays_endpoint(prepared):
    state: PointState | None = None

    def keep(found):
        nonlocal state
        state = found

    run = prepared()
    precompute(run, time.perf_counter(), Watching(keep))
    metrics = PassMetrics(run.fingerprint, run.repo_id)
    metrics(state)
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 40
    text = ""
    while time.monotonic() < deadline and "eva_dist_layers_converged" not in text:
        time.sleep(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as answer:
            text = answer.read().decode()
    line = next(line for line in text.splitlines() if line.startswith("ray_eva_dist_layers_converged{"))
    assert f'fingerprint="{run.fingerprint[:16]}"' in line and 'repo_id="tests/tiny"' in line and line.endswith(" 14.0")
    for name in ("tokens_per_second", "layers", "steps", "tokens_total", "step_seconds_bucket"):
        assert f"ray_eva_dist_{name}" in text


def test_a_worker_that_stands_still_is_named_with_what_it_was_doing(prepared):
    assignment = assignment_of(prepared(cluster={"heartbeat_s": 6.0}))
    with Gang.start(
        RayPlace(assignment.config.cluster), assignment, Request(2, 1, {"CPU": 1.0}), StopRequest()
    ) as gang:
        gang.meet()
        gang.call("load")
        pid = gang.call_one(1, "status").pid
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(GangTimeoutError, match=r"global_rank 1 gave no sign of life in mark for .*heartbeat_s=6"):
            gang.call("mark", 0)
        assert 6.0 <= time.monotonic() - started < 18.0


def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    started = time.monotonic()
    with (
        pytest.raises(GangError, match=r"cluster\.address=127\.0\.0\.1:1 cannot be reached"),
        connected(ClusterConfig(address="127.0.0.1:1")),
    ):
        pass
    assert time.monotonic() - started < 10


def test_a_request_to_stop_does_not_wait_for_a_step_that_hangs(prepared, monkeypatch):
    """What is younger than the last checkpoint is lost then, and the processes have time to go."""
    monkeypatch.setattr("eva_dist.cluster.gang._STEP_MAY_TAKE_S", 1.0)
    stop, pids = StopRequest(), []

    def hang(state):
        if state.steps == 3:
            pids.append(worker_pids()[1])
            os.kill(pids[0], signal.SIGSTOP)
            threading.Timer(2.0, stop.make).start()

    run = prepared(eva={"tau": 1.0, "max_steps": 10_000}, cluster={"heartbeat_s": 300.0, "checkpoint_every": 0})
    with pytest.raises(PreemptedError, match=r"step did not end within 1 s"):
        run_alone(assignment_of(run), hang, None, stop)
    assert len(pids) == 1
