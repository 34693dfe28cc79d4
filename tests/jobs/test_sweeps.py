"""Sweeps under both launchers: folders, what Hydra is told, exit codes, order of lines; no actors, no weights."""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import ModuleType, SimpleNamespace

import pytest
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

import jobs.fingerprint
import jobs.plan
import jobs.precompute
import jobs.shared_batch
from eva_dist.calibration.controller import first_state
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.errors import NotConvergedError, PreemptedError
from eva_dist.methods.eva import Eva
from eva_dist.plan import make_layer, make_plan
from eva_dist.run.outcome import Outcome
from jobs.hydra_main import BadSettings, exit_code
from tests.recording_callback import Recorder

SHARED = "hydra/launcher=shared_pass"
BOTH = pytest.mark.parametrize("launcher", [SHARED, "hydra/launcher=basic"])
STATE = replace(
    first_state(make_plan([make_layer("layer", 8, 8, 1, 1.0)], [["layer"]]), Eva(0.9), max_steps=5), steps=1
)


def outcome_of(run):
    return Outcome(
        **{"url": f"file:///s/{run.revision}", "repo_id": run.repo_id, "revision": run.revision},
        **{"fingerprint": run.fingerprint, "status": "done", "steps": 3, "tokens": 60, "seconds": 1.0},
        **{"pass_seconds": 0.5, "layers_converged": 14, "layers_total": 14},
    )


class Computing:
    """Stands for `compute_points`, and for `precompute` point by point: tau=1.0 never converges."""

    def __init__(self):
        self.batches = []

    def together(self, runs, started, observer, stop):
        self.batches.append([run.revision for run in runs])
        answers = {}
        for at in reversed(range(len(runs))):  # the last one converges first
            os.write(1, b"noise of a library\n")
            answers[at] = self.one(runs[at], at, observer)
        return [answers[at] for at in range(len(runs))]

    def alone(self, run, started, observer, stop):
        self.batches.append([run.revision])
        answer = self.one(run, 0, observer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def one(self, run, at, observer):
        observer.on_point_step(at, STATE)
        if run.config.eva.tau == 1.0:
            answer = NotConvergedError("eva.max_steps=5 reached")
        else:
            jobs.shared_batch.logging.getLogger("eva_dist").info("computed %s", run.revision)
            answer = outcome_of(run)
        observer.on_answer(at, answer)
        return answer


@pytest.fixture
def computing(monkeypatch):
    computing = Computing()
    monkeypatch.setattr(jobs.shared_batch, "compute_points", computing.together)
    monkeypatch.setattr("eva_dist.run.sweep.precompute", computing.alone)
    return computing


@pytest.fixture
def summaries(monkeypatch):
    """Folders of which a summary was asked; the report itself is not of these tests."""
    asked = []

    def write_sweep(folder):
        asked.append(folder)
        os.write(1, b"noise of the report\n")
        return SimpleNamespace(table=lambda: "the table")

    module = ModuleType("eva_dist.report.sweep")
    module.write_sweep = write_sweep
    monkeypatch.setitem(sys.modules, "eva_dist.report", ModuleType("eva_dist.report"))
    monkeypatch.setitem(sys.modules, "eva_dist.report.sweep", module)
    return asked


@pytest.fixture
def run(monkeypatch, tmp_path, tiny_model, words_file, capfd, computing, summaries):
    """Run a job with overrides in this process, its sweeps in `sweep/`; return code, outcomes and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(jobs.precompute, "worker_ahead", lambda cluster: nullcontext())
    Recorder.told.clear()
    Recorder.ended.clear()
    given = [
        *(f"model.name_or_path={tiny_model}", f"data.path={words_file}", "eva.r=4", f"store.url={tmp_path / 'store'}"),
        *("+hydra.callbacks.recorder._target_=tests.recording_callback.Recorder", "hydra.sweep.dir=sweep"),
    ]

    def start(*words, job=jobs.precompute.main):
        monkeypatch.setattr(
            "sys.argv", ["precompute.py", *words[: words[0] == "-m"], *given, *words[words[0] == "-m" :]]
        )
        code = exit_code(job)
        out, err = capfd.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return start


@BOTH
def test_a_good_sweep(run, launcher, computing, summaries, tmp_path):
    code, outcomes, err = run("-m", launcher, "eva.rho=1,2", "eva.tau=0.9,0.8")
    expected = ["rho1.0-tau0.9", "rho1.0-tau0.8", "rho2.0-tau0.9", "rho2.0-tau0.8"]
    assert code == 0, err
    assert [outcome["revision"] for outcome in outcomes] == expected
    assert computing.batches == ([expected] if launcher == SHARED else [[one] for one in expected])
    jobs_told = [(event, n) for n in range(4) for event in ("job_start", "job_end")]
    assert Recorder.told == [("multirun_start", None), *jobs_told, ("multirun_end", None)]
    assert [ended.status for ended in Recorder.ended] == [JobStatus.COMPLETED] * 4
    assert [ended.return_value for ended in Recorder.ended] == outcomes
    assert [ended.cfg.eva.tau for ended in Recorder.ended] == [0.9, 0.8, 0.9, 0.8]
    assert [ended.hydra_cfg.hydra.job.id for ended in Recorder.ended] == ["0", "1", "2", "3"]
    assert summaries == [tmp_path / "sweep"]
    assert "the table" in err and "noise of the report" in err


@BOTH
def test_every_folder_is_that_of_a_run(run, launcher, tmp_path):
    _, outcomes, _ = run("-m", launcher, "eva.rho=1,2,3")
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir()) == ["0", "1", "2", "multirun.yaml"]
    for n, rho in enumerate((1, 2, 3)):
        folder = tmp_path / f"sweep/{n}"
        assert sorted(p.name for p in folder.iterdir()) == [".hydra", "precompute.log", "progress.jsonl", "result.json"]
        assert f"eva.rho={rho}" in OmegaConf.load(folder / ".hydra/overrides.yaml")
        assert OmegaConf.load(folder / ".hydra/config.yaml").eva.rho == float(rho)
        assert OmegaConf.load(folder / ".hydra/hydra.yaml").hydra.job.num == n
        assert json.loads((folder / "result.json").read_text()) == outcomes[n]
        assert len((folder / "progress.jsonl").read_text().splitlines()) == 1
        assert f"computed {outcomes[n]['revision']}" in (folder / "precompute.log").read_text()


@BOTH
def test_bad_points_cost_no_other(run, launcher, computing, summaries, tmp_path):
    code, outcomes, err = run("-m", launcher, "eva.rho=1,0.5", "eva.tau=1.0,0.9")
    assert code == 1  # of the first one that failed
    assert [outcome["revision"] for outcome in outcomes] == ["rho1.0-tau0.9"]
    assert sum(computing.batches, []) == ["rho1.0-tau1.0", "rho1.0-tau0.9"]
    kinds = [NotConvergedError, dict, BadSettings, BadSettings]
    assert [type(ended._return_value) for ended in Recorder.ended] == kinds
    good = [JobStatus.COMPLETED if kind is dict else JobStatus.FAILED for kind in kinds]
    assert [ended.status for ended in Recorder.ended] == good
    assert err.count("error: eva.max_steps=5 reached") == 1
    assert err.count("error: eva.rho=0.5 must be >= 1.0") == 2  # two points
    assert "Traceback" not in err
    errors = [json.loads((tmp_path / f"sweep/{n}/error.json").read_text()) for n in (0, 2, 3)]
    assert [error["type"] for error in errors] == ["NotConvergedError", "ConfigError", "ConfigError"]
    assert errors[0]["message"] == "eva.max_steps=5 reached"
    assert errors[1]["message"].startswith("eva.rho=0.5 must be >= 1.0")
    assert not (tmp_path / "sweep/1/error.json").exists() and not (tmp_path / "sweep/0/result.json").exists()
    # Hydra calls no on_multirun_end then, but there is a summary all the same
    assert Recorder.told[-1] == ("job_end", 3)
    assert summaries == [tmp_path / "sweep"]


def test_bad_points_alone_start_nothing(run, computing):
    code, outcomes, err = run("-m", SHARED, "eva.rho=0.5,0.7")
    assert (code, outcomes, computing.batches) == (2, [], [])
    assert "eva.rho=0.5 must be" in err and "eva.rho=0.7 must be" in err


def test_one_name_for_several_points_is_bad_settings(run, computing):
    code, outcomes, err = run("-m", SHARED, "eva.rho=1,2", "artifact.revision=main")
    assert (code, outcomes, computing.batches) == (2, [], [])
    assert "artifact.revision=main is asked for by 2 points of the sweep" in err


def test_a_point_that_cannot_be_composed_costs_no_other(run, monkeypatch, computing, tmp_path):
    """The basic sweeper refuses such a sweep beforehand; others do not look."""
    code, _, err = run("-m", SHARED, "eva.rho=1,much")
    assert code == 2 and not computing.batches and "much" in err
    monkeypatch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: None)
    code, outcomes, err = run("-m", SHARED, "eva.rho=much,2,'${oc.env:NO_SUCH_VARIABLE}'")
    assert code == 2, err
    assert [outcome["revision"] for outcome in outcomes] == ["rho2.0-tau0.99"], err
    assert computing.batches == [["rho2.0-tau0.99"]]
    assert [ended.status.name for ended in Recorder.ended] == ["FAILED", "COMPLETED", "FAILED"]
    assert err.count("much' of type") == 1 and err.count("NO_SUCH_VARIABLE' not found") == 1
    for n, value in ((0, "much"), (2, "NO_SUCH_VARIABLE")):
        assert value in json.loads((tmp_path / f"sweep/{n}/error.json").read_text())["message"]
        assert value in (tmp_path / f"sweep/{n}/.hydra/overrides.yaml").read_text()


def test_interpolations_of_hydra_are_each_point_s_own(run, monkeypatch, tmp_path):
    urls = []
    really = jobs.shared_batch.prepare
    monkeypatch.setattr(jobs.shared_batch, "prepare", lambda c, known: urls.append(c.store.url) or really(c))
    code, _, _ = run("-m", SHARED, "eva.rho=1,2", "store.url=${hydra:runtime.output_dir}/store")
    assert (code, urls) == (0, [str(tmp_path / f"sweep/{n}/store") for n in (0, 1)])


def test_a_signal_in_the_pass_keeps_what_was_published_and_ends_the_rest(run, monkeypatch, summaries, tmp_path):
    def stopped(runs, started, observer, stop):
        observer.on_answer(1, outcome_of(runs[1]))
        raise PreemptedError("asked to end (SIGTERM): checkpoint after step 3")

    monkeypatch.setattr(jobs.shared_batch, "compute_points", stopped)
    code, outcomes, err = run("-m", SHARED, "eva.rho=0.5,1,2,3")
    assert code == 75  # the same command goes on, whatever else failed
    assert [outcome["revision"] for outcome in outcomes] == ["rho2.0-tau0.99"]
    assert err.count("asked to end (SIGTERM)") == 1
    kinds = [type(ended._return_value) for ended in Recorder.ended]
    assert kinds == [BadSettings, PreemptedError, dict, PreemptedError]
    assert json.loads((tmp_path / "sweep/2/result.json").read_text()) == outcomes[0]
    assert json.loads((tmp_path / "sweep/3/error.json").read_text())["type"] == "PreemptedError"
    assert summaries == [tmp_path / "sweep"]


@BOTH
def test_a_request_to_end_lets_no_other_point_begin(run, launcher, monkeypatch, computing):
    stop = StopRequest()
    monkeypatch.setattr(jobs.precompute, "_stop", stop)
    monkeypatch.setattr(jobs.precompute._shared, "_stop", stop)
    really = computing.alone
    monkeypatch.setattr("eva_dist.run.sweep.precompute", lambda *given: stop.make() or really(*given))
    if launcher == SHARED:
        stop.make()
    code, outcomes, err = run("-m", launcher, "eva.rho=1,2,3")
    assert code == 75
    begun = [] if launcher == SHARED else ["rho1.0-tau0.99"]
    assert sum(computing.batches, []) == begun == [outcome["revision"] for outcome in outcomes]
    assert [ended.status.name for ended in Recorder.ended].count("FAILED") == 3 - len(begun)
    assert err.count("asked to end (SIGTERM): nothing had begun") == (1 if launcher == SHARED else 2)


@BOTH
def test_what_nobody_foresaw_has_its_traceback_once_and_is_exit_code_1(run, launcher, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(jobs.shared_batch, "compute_points", broken)
    monkeypatch.setattr("eva_dist.run.sweep.precompute", broken)
    code, outcomes, err = run("-m", launcher, "eva.rho=1,2")
    assert (code, outcomes) == (1, [])
    assert err.count("RuntimeError: a bug") == (1 if launcher == SHARED else 2)
    assert [repr(ended._return_value) for ended in Recorder.ended] == ["RuntimeError('a bug')"] * 2


def test_one_point_whose_preparation_breaks_costs_no_other(run, monkeypatch, computing):
    really = jobs.shared_batch.prepare

    def prepare(config, known):
        if config.eva.rho == 1.0:
            raise RuntimeError("a bug")
        return really(config, known)

    monkeypatch.setattr(jobs.shared_batch, "prepare", prepare)
    code, outcomes, _ = run("-m", SHARED, "eva.rho=1,2")
    assert (code, len(outcomes), computing.batches) == (1, 1, [["rho2.0-tau0.99"]])


@BOTH
def test_a_second_sweep_in_the_same_folder_leaves_no_stale_answer(run, launcher, tmp_path):
    run("-m", launcher, "eva.tau=1.0,0.9")
    assert run("-m", launcher, "eva.tau=0.9,1.0")[0] == 1
    left = [sorted(p.name for p in (tmp_path / f"sweep/{n}").glob("*.json")) for n in (0, 1)]
    assert left == [["result.json"], ["error.json"]]


@BOTH
def test_batches_of_a_sweeper_are_numbered_on(run, launcher, computing, tmp_path):
    code, outcomes, _ = run("-m", launcher, "hydra.sweeper.max_batch_size=2", "eva.rho=1,2,3")
    assert code == 0 and len(outcomes) == 3
    assert [len(batch) for batch in computing.batches] == ([2, 1] if launcher == SHARED else [1, 1, 1])
    assert (tmp_path / "sweep/2/result.json").exists()


def test_a_summary_that_fails_loses_no_answer(run, monkeypatch):
    def write_sweep(folder):
        raise ValueError("no picture")

    monkeypatch.setattr(sys.modules["eva_dist.report.sweep"], "write_sweep", write_sweep)
    code, outcomes, err = run("-m", SHARED, "eva.rho=1,2")
    assert code == 0 and len(outcomes) == 2
    assert "no summary of the sweep" in err and "ValueError: no picture" in err


def test_a_single_run_fails_in_hydra_s_eyes_too(run, summaries, tmp_path):
    code, _, err = run("eva.tau=1.0", "hydra.run.dir=alone")
    assert code == 1 and err.count("error: eva.max_steps=5 reached") == 1
    assert [ended.status for ended in Recorder.ended] == [JobStatus.FAILED]
    assert json.loads((tmp_path / "alone/error.json").read_text())["type"] == "NotConvergedError"
    code, outcomes, _ = run("eva.tau=0.9", "hydra.run.dir=alone")
    assert (code, Recorder.ended[-1].return_value) == (0, outcomes[0])
    assert not (tmp_path / "alone/error.json").exists() and summaries == []


def test_points_are_those_of_separate_runs(run):
    """Whichever launcher: same settings, same fingerprint; and `eva-dist submit` knows them beforehand."""
    together = run("-m", SHARED, "eva.whiten=false,true")[1]
    apart = run("-m", "eva.whiten=false,true")[1]
    assert together == apart and len({outcome["fingerprint"] for outcome in apart}) == 2
    known = run("-m", SHARED, "eva.whiten=false,true", job=jobs.fingerprint.main)[1]
    assert [point["fingerprint"] for point in known] == [outcome["fingerprint"] for outcome in apart]


def test_a_task_that_shares_nothing_is_refused(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("-m", SHARED, "eva.rho=1,2", job=jobs.plan.main)
    assert code == 2, err
    assert "hydra/launcher=shared_pass: the points of jobs.plan.main share no work" in err
    assert "leave hydra/launcher out" in err


def test_the_outcome_that_hydra_keeps_is_the_line_that_is_printed(run, prepared):
    _, outcomes, _ = run("-m", SHARED, "eva.rho=2", "eva.tau=0.9", "eva.target_modules=all-linear")
    assert outcomes[0].keys() == asdict(outcome_of(prepared())).keys()
