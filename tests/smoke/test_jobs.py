"""Every job from its own command line, in its smallest size: it ends well, and its figures can be true."""

import json
import sys
from pathlib import Path

import pytest

import eva_dist
from tests.smoke.started import job, run

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

LAYERS = 14


def test_precompute_publishes_what_fingerprint_had_named(tiny, tmp_path):
    settings = tiny(f"store.url={tmp_path / 'store'}", f"hydra.run.dir={tmp_path / 'run'}")
    (named,) = job("fingerprint.py", *settings).lines
    outcome = job("precompute.py", *settings).line
    assert outcome["fingerprint"] == named["fingerprint"]
    assert (outcome["status"], outcome["layers_converged"], outcome["layers_total"]) == ("done", LAYERS, LAYERS)
    assert 0 < outcome["pass_seconds"] < outcome["seconds"]
    assert outcome["tokens"] > outcome["steps"] > 1
    rows = eva_dist.load_eva_state_dict(outcome["url"])
    assert sum(map(len, rows.values())) == LAYERS * 4
    assert job("precompute.py", *settings).line["status"] == "cached"
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["fingerprint"] == named["fingerprint"]


def test_precompute_computes_a_sweep_from_one_pass(tiny, tmp_path):
    settings = tiny(f"store.url={tmp_path / 'store'}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    ended = job("precompute.py", "-m", "hydra/launcher=shared_pass", *settings, "eva.rho=1,2")
    assert [point["status"] for point in ended.lines] == ["done", "done"]
    assert len({point["fingerprint"] for point in ended.lines}) == 2
    assert {"sweep.json", "sweep.parquet", "index.html"} <= {path.name for path in (tmp_path / "sweep").iterdir()}


def test_plan_holds_its_estimate_against_this_machine(tiny):
    measured = ["plan.measure=true", "plan.steps=4", "plan.workers=2", "plan.threads=1", "plan.json=true"]
    ended = job("plan.py", *tiny(*measured))
    checks = {check["name"]: check for check in ended.line["checks"]}
    for exact in ("parameters loaded", "bytes loaded", "input groups"):
        assert checks[exact]["predicted"] == checks[exact]["measured"] > 0
    for near in ("forward", "SVDs", "trackers", "artifact", "to_owner, 2 workers, sent"):
        assert checks[near]["measured"] > 0 and checks[near]["predicted"] > 0
    assert "profiler_st" not in ended.err, "the profiler talks"


def test_a_plan_needs_no_data(tiny_model):
    assert "Smallest" in job("plan.py", f"model.name_or_path={tiny_model}", "accelerator=a100-80gb").out


def test_prepare_demo_makes_nothing_twice(smollm2_folder, docstrings_file):
    ended = job("prepare_demo.py", str(smollm2_folder.parent))
    assert ended.err.splitlines() == [f"ready: {smollm2_folder}", f"ready: {docstrings_file}"]


def test_the_gateways_benchmark_hashes_what_it_counts():
    ended = run(sys.executable, "-m", "jobs.benchmark_gateway", "--clients", "4", "--megabytes", "1", "--rounds", "2")
    assert ended.line["right"] is True
    assert ended.line["ratio"] > 0 and len(ended.line["ratios"]) == 2
    assert all(held > 1 << 20 for held in ended.line["peak_bytes"].values())


def test_every_job_is_run_here_or_by_a_target():
    places = [Path(__file__), Path(__file__).with_name("test_targets.py"), Path("Makefile")]
    read = "\n".join(place.read_text(encoding="utf-8") for place in places)
    jobs = [path for path in Path("jobs").glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    assert len(jobs) >= 8
    assert [path.name for path in jobs if path.name not in read and f"jobs.{path.stem}" not in read] == []
