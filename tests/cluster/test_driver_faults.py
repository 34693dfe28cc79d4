"""What happens to the driver, and to whole nodes: `jobs/precompute.py` as a person runs it, in a process of its own."""

import json
import os
import signal
import time
from functools import cache
from pathlib import Path

import pytest

from tests.cluster.faults import artifact_of, half_written, job, least_cosine, processes_of, progress_of, wait_until

pytestmark = pytest.mark.ray

STEPS = 60
RAYS_OWN = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's agents look for their node once a minute; of a driver that was killed they are the last to go."""


@pytest.fixture(scope="module")
def settings(tiny_model, words_file):
    def make(store, *more):
        return [
            f"model.name_or_path={tiny_model}",
            f"data.path={words_file}",
            "data.max_length=64",
            "data.step_size=6",
            "eva.r=4",
            "eva.tau=1.0",
            f"eva.max_steps={STEPS}",
            "eva.on_max_steps=accept",
            "eva.target_modules=all-linear",
            "cluster.num_workers=2",
            "cluster.threads_per_worker=1",
            "cluster.checkpoint_every=5",
            f"store.url={store}",
            "artifact.repo_id=tests/tiny",
            *more,
        ]

    return make


@pytest.fixture
def overrides(settings, tmp_path):
    return lambda *more: settings(tmp_path / "store", *more)


@pytest.fixture(scope="module")
def truth(settings, tmp_path_factory):
    """The outcome of a run that nothing disturbed, by its number of workers."""

    @cache
    def of(workers):
        folder = tmp_path_factory.mktemp("truth")
        outcome, steps = finish(settings(folder / "store", f"cluster.num_workers={workers}"), folder / "run")
        assert steps == list(range(1, STEPS + 1))
        return outcome

    return of


def step_of(folder):
    """The last step that a run in this folder has done; 0 before the first."""
    lines = progress_of(folder)
    return lines[-1]["step"] if lines else 0


def finish(overrides, folder):
    """Run to the end; return the outcome and the steps that were done."""
    with job(overrides, folder) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, (folder / "log").read_text()[-3000:]
    return json.loads(out.splitlines()[-1]), [line["step"] for line in progress_of(folder)]


def interrupt(overrides, folder, how, at=10):
    """Send a signal once a step is done; return exit code, seconds until all processes are gone, and the last step."""
    with job(overrides, folder) as process:
        wait_until(lambda: step_of(folder) >= at or process.poll() is not None, 90)
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        sent = time.monotonic()
        os.kill(process.pid, how)
        code = process.wait(timeout=60)
        wait_until(lambda: [p for p in processes_of(process.pid) if not p.startswith(RAYS_OWN)] == [], 30)
        seconds = time.monotonic() - sent
        if how != signal.SIGKILL:
            assert processes_of(process.pid) == []
        return code, seconds, step_of(folder)


ENDS = {
    "SIGTERM": (signal.SIGTERM, 75, r"error: asked to end (SIGTERM): checkpoint after step "),
    "SIGINT": (signal.SIGINT, 1, "interrupted; nothing half-done has been published"),
    "SIGKILL": (signal.SIGKILL, -9, ""),
}


@pytest.mark.parametrize(
    ("workers", "how", "code", "says"),
    [
        pytest.param(workers, *end, id=f"{workers} workers, {name}", marks=[pytest.mark.slow] * (workers > 1))
        for workers in (1, 2)
        for name, end in ENDS.items()
    ],
)
def test_the_driver_is_ended_and_the_same_command_goes_on(overrides, truth, tmp_path, table, workers, how, code, says):
    store = tmp_path / "store"
    topology = f"cluster.num_workers={workers}"
    found, seconds, reached = interrupt(overrides(topology), tmp_path / "first", how)
    assert found == code and says in (tmp_path / "first/log").read_text()
    assert not (store / "snapshots").exists()
    outcome, steps = finish(overrides(topology), tmp_path / "second")
    assert steps[0] > 1 and steps[-1] == STEPS == outcome["steps"]
    if how == signal.SIGTERM:
        assert steps[0] == reached + 1  # nothing was lost
    assert artifact_of(path_of(outcome)) == artifact_of(path_of(truth(workers)))
    assert half_written(store) == [] and not (store / ".checkpoints").exists()
    table.add(
        f"{how.name} to the driver of {workers}, same command again",
        seconds,
        reached + 1 - steps[0],
        f"exit {code}; same bits",
    )


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_node_is_lost_and_the_gang_goes_on_with_what_is_left_or_comes_back(
    overrides, truth, tmp_path, table, comes_back
):
    """Two nodes of one CPU, a worker on each; one goes, and perhaps another takes its place."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        more = [f"cluster.address={cluster.address}", "cluster.wait_s=15", "cluster.heartbeat_s=20"]
        with job(overrides(*more), tmp_path / "run") as process:
            wait_until(lambda: step_of(tmp_path / "run") >= 10 or process.poll() is not None, 90)
            assert process.poll() is None, (tmp_path / "run/log").read_text()[-3000:]
            hurt = time.time()
            cluster.remove_node(nodes[0], allow_graceful=False)
            if comes_back:
                time.sleep(3)
                cluster.add_node(num_cpus=1)
            out, _ = process.communicate(timeout=150)
        log = (tmp_path / "run/log").read_text()
        assert process.returncode == 0, log[-3000:]
    finally:
        cluster.shutdown()
    outcome = json.loads(out.splitlines()[-1])
    lines = progress_of(tmp_path / "run")
    steps = [line["step"] for line in lines]
    said = "retry with 2 workers" if comes_back else "the cluster has room for 1 of 2 workers"
    assert said in log and steps[-1] == STEPS
    least = least_cosine(outcome["url"], truth(2)["url"])
    assert least >= 0.9999 and half_written(tmp_path / "store") == []
    back = next(line["time"] for before, line in zip(lines, lines[1:], strict=False) if line["step"] <= before["step"])
    lost = len(steps) - len(set(steps))
    fault = "a node of two is lost" + (", another comes" if comes_back else "")
    workers = "2 workers" if comes_back else "1 worker"
    table.add(fault, None, lost, f"on {workers} {back - hurt:.0f} s later; same ranks, least cosine {least:.7f}")


def path_of(outcome):
    return Path(outcome["url"].removeprefix("file://"))
