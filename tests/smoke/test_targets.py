"""Every target of the Makefile is run by CI: by `.ci/run` itself, or here in its smallest size."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.smoke.started import ROOT, make

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SERVES_FOR_EVER = {"docs"}
"""What it serves is built by `docs-build`, which is run."""


def phony():
    (line,) = re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)
    return set(line.split())


def needs(target):
    """Return the targets that a target makes first, and those that they do."""
    found = re.findall(rf"^{target}:([^=\n]*)$", MAKEFILE, re.MULTILINE)
    direct = {name for line in found for name in line.split() if name in phony()}
    return direct | {name for each in direct for name in needs(each)}


def test_every_target_is_run_by_something():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    own = Path(__file__).read_text(encoding="utf-8")
    run = {name for line in re.findall(r"^\s*make (.*)$", ci, re.MULTILINE) for name in line.split()} & phony()
    run |= set(re.findall(r'\bmake\(\s*"([\w-]+)"', own))
    run |= {name for target in run for name in needs(target)}
    assert phony() - run - SERVES_FOR_EVER == set(), "add it to .ci/run, or a test that runs it to this file"


def test_help_names_targets_that_there_are():
    told = set(re.findall(r"make ([\w-]+)", make("help").out))
    assert told <= phony()
    assert phony() - told <= {"help", "browser"}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_bench_compares_the_same_work(tiny, tmp_path):
    sizes = ["benchmark.seeds=[0]", "benchmark.dtypes=[float32]", "benchmark.workers=[1,2]", "benchmark.threads=1"]
    sizes += ["benchmark.scaling_steps=3", "benchmark.solver_updates=4", "benchmark.solver_groups=3"]
    words = f"'~model.config_overrides.num_hidden_layers' hydra.run.dir={tmp_path}"
    ended = make("bench", *tiny(*sizes, "benchmark.precision_steps=2"), f"ARGUMENTS={words}")
    line = ended.line
    for key in ("speedup_vs_peft", "overhead_vs_floor", "solver_speedup_vs_peft", "svd_seconds_ratio_most_workers"):
        assert line[key] > 0, key
    assert set(line["overlap_at_stop"]) == {"PEFT", "eva_dist float32"}
    figures = json.loads((tmp_path / "benchmark.json").read_text())
    ((peft, ours),) = figures["runs"]
    fewest = min(peft["steps"], ours["steps"])
    assert fewest > 1 and abs(peft["tokens"] / peft["steps"] - ours["tokens"] / ours["steps"]) < 60
    for one in (peft, ours):  # phases are of compute, but for load and write, and leave little out
        spent = sum(seconds for phase, seconds in one["seconds"].items() if phase not in ("load", "write"))
        assert 0.5 * one["compute_seconds"] < spent <= 1.01 * one["compute_seconds"]
    assert line["speedup_vs_peft"] == pytest.approx(peft["compute_seconds"] / ours["compute_seconds"], abs=0.01)
    assert [row["workers"] for row in figures["scaling"]] == [1, 2, 2]
    assert "profiler_st" not in ended.err, "the profiler talks"
    stages = re.findall(r"^\[benchmark\] (\d+)/(\d+) .* \| expected \d+:\d\d more$", ended.err, re.MULTILINE)
    assert [int(at) for at, _ in stages] == list(range(1, int(stages[0][1]) + 1))
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_bench_sweep_tells_what_a_pass_of_many_points_saves(tiny, tmp_path):
    words = f"'~model.config_overrides.num_hidden_layers' 'benchmark.taus=[0.8]' hydra.run.dir={tmp_path}"
    ended = make("bench-sweep", *tiny("benchmark.quick=true", "benchmark.threads=1"), f"ARGUMENTS={words}")
    line = ended.line
    assert (line["points"], len(line["peft_seconds"]), line["own"]) == (2, 1, None)
    assert all(seconds > 0 for seconds in [*line["alone_seconds"], line["sweep_seconds"], *line["peft_seconds"]])
    assert line["sweep_seconds"] < 2.5 * max(line["alone_seconds"]), "two points cost less than two runs"
    assert "[benchmark] 4/4 PEFT, rho=2.0 tau=0.8" in ended.err


@pytest.mark.slow
def test_bench_gateway_tells_a_ratio():
    assert make("bench-gateway", "ARGUMENTS=--clients 4 --megabytes 1 --rounds 1").line["ratio"] > 0


@pytest.mark.slow
def test_test_all_takes_what_pytest_takes():
    assert "2 passed" in make("test-all", "ARGUMENTS=-q tests/test_version.py").out


@pytest.mark.slow
@pytest.mark.ray
def test_faults_ends_with_its_table():
    ended = make("faults", "ARGUMENTS=-k a_worker_raises_once")
    assert "2 passed" in ended.out and "a worker raises" in ended.out


def test_format_mends_what_can_be_mended(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "ugly.py").write_text('"""Words."""\nimport os\nx = {  "a":1 }\n')
    make("format", folder=tmp_path)
    assert (tmp_path / "ugly.py").read_text() == '"""Words."""\n\nx = {"a": 1}\n'


def test_clean_leaves_the_work(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept, gone = tmp_path / "work.py", tmp_path / ".cache"
    kept.touch()
    gone.mkdir()
    make("clean", folder=tmp_path, venv=tmp_path / ".venv")
    assert kept.exists() and not gone.exists()
