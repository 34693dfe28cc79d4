"""The benchmark on a tiny model, in this process: what it says is about the same work, and it says all of it."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from peft.utils.incremental_pca import IncrementalPCA

from eva_dist.config import Dtype
from jobs import benchmark, measures
from jobs.benchmark_report import draw, headline, to_markdown

JOB = Path(__file__).parents[2] / "jobs" / "benchmark.py"


@pytest.fixture
def figures(prepared, monkeypatch):
    monkeypatch.setattr(benchmark, "apart", lambda work, *arguments: work(*arguments))
    config = prepared(data={"step_size": 8}, eva={"tau": 0.8}, model={"dtype": Dtype.float32}).config
    wanted = benchmark.Benchmark(
        seeds=[0, 1],
        dtypes=[Dtype.float32],
        workers=[],
        solver_updates=6,
        solver_groups=3,
        precision_steps=3,
        threads=1,
    )
    return benchmark.measure(config, wanted)


def test_peft_the_floor_and_we_do_the_same_work(figures, tmp_path):
    partial_fit = IncrementalPCA.partial_fit
    for peft, ours in figures.runs:
        assert peft.name == "PEFT" and ours.name == "eva_dist float32"
        assert ours.extra["layers_converged"] == 14
        assert 0 < ours.extra["floor_seconds"] < ours.extra["pass_seconds"] < ours.compute_seconds
        for one in (peft, ours):  # 8 samples a step, of 5 to 39 words
            assert 8 * 5 <= one.tokens / one.steps <= 8 * 39
            assert one.seconds["forward"] > 0 and one.seconds["svd"] > 0
            assert (
                sum(s for phase, s in one.seconds.items() if phase not in ("load", "write"))
                <= one.compute_seconds * 1.01
            )
    for found in figures.accuracy:
        assert set(found) == {"PEFT", "eva_dist float32"}
        assert all(0.5 < found[name]["overlap_worst"] <= found[name]["overlap_median"] <= 1 for name in found)
    assert {row.updates for row in figures.solvers} == {18}
    by_name = {row.name: row.deficit_median for row in figures.solvers}
    assert math.isclose(by_name["incremental"], by_name["PEFT IncrementalPCA"], rel_tol=1e-2, abs_tol=1e-7)
    assert [row.dtype for row in figures.precision] == ["bfloat16", "float16"]
    assert all(row.overlap_median > 0.98 for row in figures.precision)
    assert figures.memory["tracker_bytes"] > 0
    assert IncrementalPCA.partial_fit is partial_fit

    line = json.loads(json.dumps(dataclasses.asdict(headline(figures))))
    for key in ("speedup_vs_peft", "overhead_vs_floor", "solver_speedup_vs_peft", "deficit_ratio_vs_peft"):
        assert isinstance(line[key], float) and math.isfinite(line[key])
    total = [sum(run[i].compute_seconds for run in figures.runs) for i in (0, 1)]
    assert line["speedup_vs_peft"] == round(total[0] / total[1], 2)
    text = to_markdown(figures)
    assert all(name in text for name in ("PEFT IncrementalPCA", "eva_dist float32", "trackers", "float16"))
    draw(figures, tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_growth_is_measured_where_it_is_asked_for(prepared):
    config = prepared().config
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, config_overrides={"num_hidden_layers": 2}),
        eva=dataclasses.replace(config.eva, r=2),
    )  # fmt: skip
    cases = measures.growth_cases(config)
    assert [(changed, value) for changed, value, _ in cases] == [
        ("samples a step", "2"), ("samples a step", "4"), ("samples a step", "8"),
        ("blocks", "1"), ("blocks", "2"), ("blocks", "4"), ("r", "8"), ("r", "16"), ("r", "32"),
    ]  # fmt: skip
    assert [case.model.config_overrides["num_hidden_layers"] for _, _, case in cases] == [2, 2, 2, 1, 2, 4, 2, 2, 2]


def test_settings_that_cannot_be_are_refused_before_anything_runs(tmp_path):
    job = [sys.executable, str(JOB), f"hydra.run.dir={tmp_path}", "model.name_or_path=/nowhere", "benchmark.seeds=[0]"]
    done = subprocess.run(job, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert "model.name_or_path=/nowhere" in done.stderr
