"""What a person sees who gets a setting wrong: exit code 2, one message with key, value and remedy, nothing left."""

import json
import re
from contextlib import nullcontext

import pytest

import jobs.precompute
from jobs.hydra_main import exit_code


@pytest.fixture
def run(monkeypatch, tmp_path, tiny_model, words_file, capfd):
    """Run the job with overrides, in this process, from an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    good = [f"model.name_or_path={tiny_model}", f"data.path={words_file}", "eva.r=4", "store.url=store"]

    def start(*overrides):
        monkeypatch.setattr("sys.argv", ["precompute.py", *good, *overrides])
        monkeypatch.setattr("eva_dist.run.sweep.precompute", lambda *_: pytest.fail("actors were started"))
        monkeypatch.setattr(jobs.precompute, "worker_ahead", lambda cluster: nullcontext())
        code = exit_code(jobs.precompute.main)
        out, err = capfd.readouterr()
        return code, out, err

    return start


BAD = {
    "eva.rho=0.5": r"eva\.rho=0\.5 must be >= 1\.0; use 1\.0 for no redistribution",
    "eva.tau=1.5": r"eva\.tau=1\.5 must be in 0\.\.1",
    "eva.tau=-0.1": r"eva\.tau=-0\.1 must be in 0\.\.1",
    "eva.r=0": r"eva\.r=0 must be >= 1",
    "eva.r=33": r"eva\.r=33 must be <= in_features=32 of layer model\.layers\.0\.self_attn\.q_proj; use a smaller",
    "eva.rhoo=2": r"eva\.rhoo=2 is no setting; did you mean eva\.rho\?",
    "evaa.rho=2": r"evaa\.rho=2 is no setting; did you mean eva\.rho\?",
    "+eva.extra=1": r"eva\.extra=1 is no setting",
    "eva.rho=much": r"(?s)much.*eva\.rho|eva\.rho.*much",
    "eva.on_max_steps=maybe": r"maybe.*\[error, accept\]",
    "solver=magic": r"solver/magic.*covariance.*incremental.*subspace",
    "solver.oversampling=-1": r"solver\.oversampling=-1 must be >= 0",
    "'eva.target_modules=[nothing_like_it]'": r"eva\.target_modules=.*nothing_like_it.*its linear layers end in q_proj",
    "'eva.target_modules=\"(q_proj\"'": r"eva\.target_modules='\(q_proj'.*does not fit",
    "+eva.rank_pattern.nope=2": r"eva\.rank_pattern\.nope names none of the",
    "eva.target_modules=[embed_tokens]": r"eva\.target_modules names no linear layer, only model\.embed_tokens",
    "model.config_overrides={q_proj:2}": r"adds keys to model\.config_overrides; write '\+model\.config_overrides",
    "eva.target_modules=3": r"eva\.target_modules=3 must be null, a list of names or a regex",
    "data.path=/no/such/file.jsonl": r"data\.path=/no/such/file\.jsonl.*not exist",
    "data.text_field=body": r"data\.text_field=body.*text",
    "data.split=exam": r"data\.split=exam",
    "data.step_size=0": r"data\.step_size=0 must be >= 1",
    "data.streaming=true": r"data\.num_samples=null must be set when data\.streaming=true",
    "model.name_or_path=/no/such/model": r"model\.name_or_path=/no/such/model",
    "model.task=POEM": r"POEM.*CAUSAL_LM",
    "model.name_or_path=''": r"model\.name_or_path='' must be a model folder or a hub id",
    "cluster.num_workers=0": r"cluster\.num_workers=0 must be >= 1",
    "cluster.shard_size=2": r"cluster\.num_workers=1 must be a multiple of cluster\.shard_size=2.*num_workers=2",
    "cluster.offload=true": r"cluster\.offload=true must come with cluster\.shard_size >= 2",
    "resume=perhaps": r"perhaps.*\[auto, never\]",
    "resum=auto": r"resum=auto is no setting; did you mean resume\?",
    "cluster.exchange=telepathy": r"telepathy.*\[to_owner, all_gather\]",
    "store.url=ftp://host": r"store\.url=ftp://host must be a folder, file:///, s3://",
    "artifact.repo_id=one": r"artifact\.repo_id=one must be namespace/name",
    "artifact.repo_id=snapshots/x": r"snapshots",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_setting(run, tmp_path, override):
    code, out, err = run(override.strip("'"))
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert out == ""
    assert len(message) == 1
    assert re.search(BAD[override], err), err
    assert "Traceback" not in err
    assert not list((tmp_path / "store").glob("*/*"))


def test_all_complaints_at_once(run):
    code, _, err = run("eva.rho=0", "eva.tau=7", "data.max_length=0")
    assert code == 2
    assert all(key in err for key in ("eva.rho=0", "eva.tau=7", "data.max_length=0"))


@pytest.mark.parametrize("lines", [[], [{"text": ""}, {"text": "   "}]])
def test_empty_data(run, tmp_path, lines):
    data = tmp_path / "empty.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    code, _, err = run(f"data.path={data}")
    assert code == 2
    assert re.search(rf"data\.path={data}", err)


def test_a_store_that_cannot_be_written(run, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    code, _, err = run("store.url=taken/store")
    assert code == 2
    assert re.search(r"store\.url=taken/store cannot be written", err)
    assert (tmp_path / "taken").read_text() == "a file, not a folder"


def test_a_model_folder_without_weights(run, tmp_path, tiny_model):
    empty = tmp_path / "model"
    empty.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (empty / file.name).write_bytes(file.read_bytes())
    code, _, err = run(f"model.name_or_path={empty}")
    assert code == 2
    assert re.search(r"model\.name_or_path=.* holds no weights", err)


def test_cfg_and_help_are_for_people(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["precompute.py", "--cfg", "job"])
    assert exit_code(jobs.precompute.main) == 0
    assert "rho: 2.0" in capfd.readouterr().out
    monkeypatch.setattr("sys.argv", ["precompute.py", "--help"])
    assert exit_code(jobs.precompute.main) == 0
    text = capfd.readouterr().out
    assert all(word in text for word in ("solver: covariance, incremental, subspace", "Exit codes", "store.url="))
