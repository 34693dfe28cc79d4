"""Sums that the points of a shared pass keep: each its own, as if it had run alone. In process, no ray."""

import tempfile
import time
from dataclasses import replace

import pytest
import torch

from eva_dist.calibration.engine import run_pass
from eva_dist.calibration.pass_state import first_pass
from eva_dist.calibration.worker import Worker
from eva_dist.cluster.attempts import Collector
from eva_dist.config import SolverName, SweepMode
from eva_dist.run.prepare import prepare
from eva_dist.run.sweep import compute_points
from eva_dist.store.store import Store
from tests.own_run import own_run

COVARIANCE = "covariance.safetensors"


class Alone:
    """A gang of one member, in this process."""

    def __init__(self, session):
        self.session = session

    def call(self, method, *arguments):
        return [getattr(self.session, method)(*arguments)]

    def call_one(self, global_rank, method, *arguments):
        assert global_rank == 0
        return getattr(self.session, method)(*arguments)


def run_here(assignment, observer, place, checkpoints, stop, scratch):
    """What `run_on_gang` does when nothing fails."""
    session = Worker(assignment, 0, 1, torch.device("cpu"))
    session.load()
    probe, layout = session.probe()
    plan = assignment.plan(probe.groups, 1)
    session.begin(plan, probe, layout)
    collect, ended = Collector(Alone(session), 0.0, 1, scratch), set()

    def after_step(state):
        observer.on_step(state)
        for point, key in enumerate(state.plan.keys):
            if point not in state.running and point not in ended:
                ended.add(point)
                observer.on_point_end(key, state.errors[point] or collect(state.points[point], point))

    run_pass(first_pass(plan, assignment.begin(plan)), lambda decision: [session.step(decision)], after_step)
    session.leave()


@pytest.fixture
def sweep(monkeypatch, tmp_path, no_figures):
    """Compute points in one pass, and return how many passes that took and the artifacts."""
    passes = []

    def run_once(assignment, *rest):
        passes.append(assignment)
        run_here(assignment, *rest)

    monkeypatch.setattr("eva_dist.run.sweep.run_on_gang", run_once)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def compute(configs):
        runs = [prepare(config) for config in configs]
        outcomes = compute_points(runs, time.perf_counter())
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        assert list(scratch.iterdir()) == []  # nothing is left of it
        return len(passes), [Store(runs[0].store.url).find(outcome.fingerprint) for outcome in outcomes]

    return compute


@pytest.mark.parametrize("mode", SweepMode)
def test_each_point_keeps_its_own_sums(sweep, configure, tmp_path, mode):
    settings = [{"rho": 2.0}, {"rho": 1.0}, {"rho": 2.0, "tau": 0.99}, {"rho": 2.0, "whiten": True}]
    solver = {"name": SolverName.covariance, "keep_covariance": True}
    configs = [configure(solver=solver, eva=eva, cluster={"num_workers": 1}, sweep={"mode": mode}) for eva in settings]
    passes, found = sweep(configs)
    assert passes == 1
    content = [each.folder.joinpath(COVARIANCE).read_bytes() for each in found]
    assert content[3] == content[0] and content[2] != content[0]
    for at, config in enumerate(configs[:3]):
        alone = own_run(replace(config, store=replace(config.store, url=str(tmp_path / f"alone-{at}"))))
        assert content[at] == (alone.folder / COVARIANCE).read_bytes(), settings[at]


def test_points_that_keep_none_make_no_files(sweep, configure):
    passes, found = sweep([configure(solver={"name": SolverName.covariance}, cluster={"num_workers": 1})])
    assert passes == 1 and COVARIANCE not in found[0].manifest["files"]
