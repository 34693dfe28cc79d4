"""The plan as a person gets it: a table or one JSON object on standard output, from a config.json alone."""

import json
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import jobs.plan
from eva_dist.preflight.accelerator import Accelerator
from jobs.calibrate import calibrate
from jobs.hydra_main import exit_code

FIGURES = sorted((Path(__file__).parents[2] / "conf" / "accelerator").glob("*.yaml"))


@pytest.fixture
def run(monkeypatch, tmp_path, tiny_model, capfd):
    """Run the job with overrides, in this process, from an empty folder; return exit code, stdout and stderr."""
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_model / "config.json", bare)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def start(*overrides):
        given = [f"model.name_or_path={bare}", "eva.r=4", "plan.threads=1", *overrides]
        monkeypatch.setattr("sys.argv", ["plan.py", *given])
        code = exit_code(jobs.plan.main)
        out, err = capfd.readouterr()
        assert not list(here.iterdir())
        return code, out, err

    return start


def test_a_table_from_a_config_alone(run):
    code, out, err = run("eva.target_modules=all-linear", "accelerator=a100-80gb", "cluster.num_workers=2")
    assert code == 0, err
    for part in ("target layers", "input groups", "trackers", "rows exchanged", "peak", "EVA state dict", "Smallest"):
        assert part in out
    assert "cluster.shard_size=1 cluster.num_workers=2" in out
    assert "nan" not in out


def test_one_json_object(run):
    code, out, err = run("plan.json=true", "accelerator=h100", "cluster.num_workers=2", "cluster.shard_size=2")
    assert code == 0, err
    assert out.count("\n") == 1
    found = json.loads(out)["preflight"]
    assert found["model"]["parameters"] == 64 * 32 * 2 + 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48 + 2 * 32) + 32
    assert found["model"]["input_groups"] == 2  # q_proj and v_proj of both blocks, PEFT's default
    assert found["work"]["gathered_bytes"] > 0
    assert found["accelerator"]["name"] == "h100"
    assert json.loads(out)["checks"] == []


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["accelerator=abacus"], r"accelerator/abacus"),
        (["accelerator.memory_gib=-1"], "accelerator.memory_gib=-1.0 must be > 0"),
        (["accelerator=h100", "accelerator.tflops=null"], "accelerator.tflops=null must be set"),
        (["plan.steps=1"], "plan.steps=1 must be >= 4"),
        (["plan.workers=0"], "plan.workers=0 must be >= 1"),
        (["plan.threads=0"], "plan.threads=0 must be >= 1"),
        (["plan.measure=true"], "data.path='' must name the text to measure with"),
        (["eva.rho=0", "plan.steps=1"], "eva.rho=0.0 must be >= 1.0"),
        (["model.name_or_path=/no/such/model"], "model.name_or_path=/no/such/model"),
        (["model.name_or_path=''"], "model.name_or_path='' must be a model folder or a hub id"),
        (["eva.target_modules=[nothing]"], "eva.target_modules=.*nothing"),
    ],
)
def test_bad_settings(run, overrides, complaint):
    code, out, err = run(*overrides)
    assert (code, out) == (2, "")
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert re.search(complaint, err), err


def test_predicted_beside_measured(run, tiny_model, words_file):
    overrides = [f"model.name_or_path={tiny_model}", f"data.path={words_file}", "eva.target_modules=all-linear"]
    sizes = ["data.step_size=6", "data.max_length=64"]
    code, out, err = run(*overrides, *sizes, "plan.json=true", "plan.measure=true", "plan.workers=1", "plan.steps=5")
    assert code == 0, err
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    for exact in ("parameters loaded", "bytes loaded", "input groups", "trackers"):
        assert checks[exact]["predicted"] == checks[exact]["measured"] > 0
    close = {
        "forward, peak": 0.1,
        "worker, peak beyond the model": 0.35,
        "forward, products less attention": 0.05,
        "EVA state dict": 0.5,
    }
    for name, tolerance in close.items():
        assert checks[name]["predicted"] == pytest.approx(checks[name]["measured"], rel=tolerance), name
    for name in ("forward", "SVDs"):
        assert checks[name]["predicted"] > 0 and checks[name]["measured"] > 0
    text = jobs.plan.checks_to_text("checked", [jobs.plan.Check(**check) for check in checks.values()])
    assert "predicted  " in text and "+0.0 %" in text


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "conf" / "accelerator").glob("*.yaml")), ids=lambda file: file.stem
)
def test_figures_of_accelerators(file):
    figures = OmegaConf.to_container(OmegaConf.load(file))
    assert figures.keys() == Accelerator.__dataclass_fields__.keys()
    accelerator = Accelerator(**figures)
    assert accelerator.name == file.stem and list(accelerator.problems()) == []


def test_a_cpu_is_measured_and_what_is_set_is_left_alone(configure):
    from eva_dist.modeling.load import read_architecture

    config = configure()
    found = calibrate(Accelerator(tflops=7.0), read_architecture(config.model), config, 1)
    assert found.tflops == 7.0
    assert all(getattr(found, key) > 0 for key in ("memory_gib", "tflops_float32", "tflops_float64", "bandwidth_gbs"))
    gpu = Accelerator("x", "cuda", 80, 312, 19.5, 9.7, 2039, 10)
    assert calibrate(gpu, read_architecture(config.model), config, 1) is gpu


def test_help_is_for_people(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["plan.py", "--help"])
    assert exit_code(jobs.plan.main) == 0
    text = capfd.readouterr().out
    assert all(word in text for word in ("a100-80gb", "plan.measure=true", "Exit codes", "solver: covariance"))
