"""The job from settings to a published artifact, on a gang of two, with a tiny model."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eva_dist
import eva_dist.artifact.write
from eva_dist.artifact.covariance import open_covariance
from eva_dist.artifact.restore import restore_artifact
from eva_dist.config import Budget, OnMaxSteps, SolverName
from eva_dist.errors import NotConvergedError, StoreError
from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.run.prepare import prepare
from eva_dist.run.sweep import precompute

JOB = Path(__file__).parents[2] / "jobs" / "precompute.py"


def compute(run):
    return precompute(run, time.perf_counter())


def published(store):
    """Names of all that a reader of the store sees."""
    return sorted(str(path.relative_to(store)) for path in store.glob("*/*")) if store.exists() else []


@pytest.mark.usefixtures("gangs")
class TestOnAGang:
    def test_published_then_answered_from_the_store(self, prepared, tmp_path):
        run = prepared()
        first = compute(run)
        assert first.status == "done"
        assert (first.layers_converged, first.layers_total) == (14, 14)
        assert first.url == (tmp_path / "store/tests/tiny/rho2.0-tau0.9").as_uri()
        state_dict = eva_dist.load_eva_state_dict(first.url)
        assert sum(len(rows) for rows in state_dict.values()) == 14 * 4

        again = compute(run)
        assert again.status == "cached"
        same = {"status", "seconds"}
        assert {k: v for k, v in vars(first).items() if k not in same} == {
            k: v for k, v in vars(again).items() if k not in same
        }
        assert again.seconds < 1
        smaller = prepared(eva={"r": 3})  # another artifact does not take the default name of this one
        assert smaller.revision == f"rho2.0-tau0.9-{smaller.fingerprint[:8]}"
        assert run.revision == first.revision == "rho2.0-tau0.9"
        other = prepare(
            dataclasses.replace(
                run.config,
                cluster=dataclasses.replace(run.config.cluster, num_workers=1),
                artifact=dataclasses.replace(run.config.artifact, repo_id="tests/other"),
            )
        )
        elsewhere = compute(other)
        assert elsewhere.status == "cached"
        assert elsewhere.url == (tmp_path / "store/tests/other/rho2.0-tau0.9").as_uri()
        for name, rows in eva_dist.load_eva_state_dict(elsewhere.url).items():
            assert torch.equal(rows, state_dict[name])

    def test_what_two_workers_have_summed_up_is_kept(self, prepared):
        run = prepared(solver={"name": SolverName.covariance, "keep_covariance": True})
        compute(run)
        stored = restore_artifact(run.store.find(run.fingerprint).folder)
        with open_covariance(stored.result.covariance) as sums:
            for group in stored.result.state.plan.groups:
                found = CovarianceTracker(group.n_components).components(sums.state(group))
                assert torch.equal(found.v_KD, stored.result.components[group.index].v_KD), group.tap

    def test_not_converged_is_an_error_that_lists_the_layers(self, prepared, tmp_path):
        run = prepared(eva={"tau": 1.0, "max_steps": 3})
        with pytest.raises(NotConvergedError, match=r"max_steps=3 .* 14 of 14 layers") as error:
            compute(run)
        assert "model.layers.1.mlp.down_proj" in str(error.value)
        assert "lowest cosine 0." in str(error.value)
        assert published(tmp_path / "store") == []

    def test_not_converged_but_accepted_says_so(self, prepared):
        run = prepared(eva={"tau": 1.0, "max_steps": 3, "on_max_steps": OnMaxSteps.accept})
        outcome = compute(run)
        assert (outcome.status, outcome.steps, outcome.layers_converged) == ("not_converged", 3, 0)
        folder = Path(outcome.url.removeprefix("file://"))
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["status"] == "not_converged"
        assert {layer["stop_reason"] for layer in manifest["layers"].values()} == {"max_steps"}
        assert "not converged" in (folder / "README.md").read_text().lower()
        # whoever wants it converged does not get it from the store
        strict = prepared(eva={"tau": 1.0, "max_steps": 3})
        assert strict.fingerprint == run.fingerprint
        with pytest.raises(NotConvergedError):
            compute(strict)

    def test_a_full_disk_leaves_nothing(self, prepared, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(eva_dist.artifact.write, "write_plots", full)
        with pytest.raises(StoreError, match=r"store\.url=.*No space left on device"):
            compute(prepared())
        assert published(tmp_path / "store") == []
        assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_fingerprint_covers_what_decides_the_numbers_and_nothing_else(configure, tmp_path, words_file):
    def fingerprint(**changes):
        return prepare(configure(**changes)).fingerprint

    base = fingerprint()
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes(words_file.read_bytes())
    same = [
        {"cluster": {"num_workers": 7, "timeout_s": 5.0, "threads_per_worker": 3}},
        {"data": {"batch_size": 1}},
        {"data": {"path": str(copy)}},
        {"store": {"url": str(tmp_path / "another store")}},
        {"artifact": {"repo_id": "a/b", "revision": "c"}},
        {"eva": {"on_max_steps": OnMaxSteps.accept}},
        {"eva": {"target_modules": r".*\.(q|k|v|o|gate|up|down)_proj"}},
        {"solver": {"power_steps": 1}},
    ]
    other = [
        {"eva": {"r": 5}},
        {"eva": {"rho": 1.5}},
        {"eva": {"tau": 0.91}},
        {"eva": {"whiten": True}},
        {"eva": {"budget": Budget.params}},
        {"eva": {"lora_alpha": 3.0}},
        {"eva": {"target_modules": ["q_proj"]}},
        {"eva": {"rank_pattern": {"q_proj": 2}}},
        {"eva": {"max_steps": 7}},
        {"data": {"step_size": 5}},
        {"data": {"max_length": 63}},
        {"data": {"seed": 1}},
        {"data": {"shuffle": False}},
        {"data": {"num_samples": 100}},
        {"model": {"config_overrides": {"num_hidden_layers": 1}}},
        {"solver": {"seed": 1}},
        {"solver": {"power_steps": 2}},
    ]
    assert {fingerprint(**changes) for changes in same} == {base}
    prints = [fingerprint(**changes) for changes in other]
    assert len({base, *prints}) == len(other) + 1


def test_the_kind_of_budget_is_named_only_where_it_is_not_pefts(prepared):
    """So fingerprints and revisions are what they were before there was another."""
    ranks, params = prepared(), prepared(eva={"budget": Budget.params})
    assert "budget" not in ranks.decisive["eva"]
    assert params.decisive == ranks.decisive | {"eva": ranks.decisive["eva"] | {"budget": "params"}}
    both = prepared(eva={"budget": Budget.params, "whiten": True, "rho": 1.5})
    assert [run.revision for run in (ranks, params, both)] == [
        "rho2.0-tau0.9",
        "rho2.0-tau0.9-params",
        "rho1.5-tau0.9-whiten-params",
    ]
    assert prepared(eva={"whiten": True}).revision == "rho2.0-tau0.9-whiten"


def test_a_hub_id_is_known_by_its_commit(tiny_model, words_file, tmp_path):
    """From the hub's own cache, offline; in a process of its own, for its place is read at the import."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub/models--org--tiny"
    shutil.copytree(tiny_model, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    code = (
        "from pathlib import Path; from eva_dist.run.prepare import prepare; from tests.tiny_run import tiny_config\n"
        f"run = prepare(tiny_config('org/tiny', Path({str(words_file)!r}), Path({str(tmp_path / 'store')!r})))\n"
        "print(run.model['weights'], run.model['id'], len(run.targets.layers))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        cwd=JOB.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [f"commit:{commit}", "org/tiny", "14"], done.stderr


@pytest.mark.ray
@pytest.mark.real
@pytest.mark.slow
def test_two_workers_equal_one_by_the_command(smollm2_folder, docstrings_file, tmp_path):
    """The very command, on real weights and text: standard output is one JSON line, whatever the workers print."""
    outcomes = {}
    for workers in (1, 2):
        done = subprocess.run(
            [
                *(sys.executable, str(JOB), f"model.name_or_path={smollm2_folder.resolve()}"),
                *("+model.config_overrides.num_hidden_layers=1", f"data.path={docstrings_file.resolve()}"),
                *("data.max_length=64", "data.step_size=7", "data.batch_size=2", "eva.r=8", "eva.tau=0.9"),
                *("eva.target_modules=all-linear", f"cluster.num_workers={workers}"),
                *(f"store.url={tmp_path / f'store{workers}'}", "artifact.repo_id=team/cut"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        assert "layers converged 7/7" in done.stderr
        outcomes[workers] = json.loads(done.stdout)
    one, two = outcomes[1], outcomes[2]
    assert set(one) == {
        *("url", "repo_id", "revision", "fingerprint", "status", "steps", "tokens", "seconds", "pass_seconds"),
        *("layers_converged", "layers_total"),
    }
    assert one["fingerprint"] == two["fingerprint"]
    assert (one["steps"], one["tokens"], one["status"]) == (two["steps"], two["tokens"], "done")
    a, b = (eva_dist.load_eva_state_dict(outcome["url"]) for outcome in (one, two))
    assert {name: len(rows) for name, rows in a.items()} == {name: len(rows) for name, rows in b.items()}
    cosines = torch.cat([torch.cosine_similarity(a[name], b[name]) for name in a if len(a[name])])
    assert cosines.abs().min() >= 0.9999
