"""`solver.keep_covariance`: runs whose artifacts keep their sums, and merging what real passes have kept."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from eva_dist.artifact.covariance import open_covariance
from eva_dist.artifact.restore import restore_artifact
from eva_dist.config import Config, OnMaxSteps, SolverConfig, SolverName
from eva_dist.errors import ConfigError, StoreError
from eva_dist.modeling.load import read_architecture
from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.preflight.accelerator import Accelerator
from eva_dist.preflight.estimate import estimate
from eva_dist.preflight.report import to_text
from eva_dist.run.identity import identify
from eva_dist.run.prepare import prepare
from eva_dist.run.publish import is_stored
from eva_dist.transform.merge import merge_and_publish
from tests.own_run import own_run
from tests.tiny_run import tiny_config

COVARIANCE = "covariance.safetensors"
KEEP = {"name": SolverName.covariance, "keep_covariance": True}
CPU = Accelerator("cpu", "cpu", 64, 1, 0.5, 0.2, 20, 2, 5, 1, 10, 8, 1.0)
EPOCH = {"tau": 1.0, "on_max_steps": OnMaxSteps.accept}


@pytest.fixture(scope="module")
def halves(words_file, tmp_path_factory):
    """The words, and two files that hold 60 and 90 of their samples, all of them by step counts that are whole."""
    folder = tmp_path_factory.mktemp("halves")
    lines = words_file.read_text().splitlines(keepends=True)[:150]
    files = {"first": lines[:60], "second": lines[60:], "both": lines}
    for name, part in files.items():
        (folder / f"{name}.jsonl").write_text("".join(part))
    return {name: (folder / f"{name}.jsonl", len(part) // 6) for name, part in files.items()}


@pytest.fixture
def keeping(halves, tiny_model, tmp_path, no_figures):
    """Run one epoch over one of the files, no layer leaving before its end, and keep the sums."""

    def run(name, shuffle=True, **eva):
        path, steps = halves[name]
        config = tiny_config(
            tiny_model,
            path,
            tmp_path / "store",
            solver=KEEP,
            eva=EPOCH | {"max_steps": steps} | eva,
            cluster={"num_workers": 1},
            data={"shuffle": shuffle},
            artifact={"revision": name},
        )
        return own_run(config)

    return run


@pytest.mark.parametrize(
    ("shuffle", "tolerance"),
    [(False, 1e-10), (True, 1e-8)],  # other minibatches, and a forward in float32 rounds otherwise
)
def test_two_runs_merged_are_one_run_over_both_files(keeping, tmp_path, shuffle, tolerance):
    first, second, both = (keeping(name, shuffle) for name in ("first", "second", "both"))
    merged = merge_and_publish([first.url, second.url], [], {}, str(tmp_path / "store"))
    folder = Path(merged.url.removeprefix("file://"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert merged.tokens == both.manifest["tokens"] and merged.steps == both.manifest["steps"] == 25
    ranks, theirs = ({n: layer["rank"] for n, layer in m["layers"].items()} for m in (manifest, both.manifest))
    assert ranks == theirs
    a, b = (load_file(where / "components.safetensors") for where in (folder, both.folder))
    assert a.keys() == b.keys()
    assert min(float(torch.linalg.vecdot(a[tap], b[tap]).abs().min()) for tap in b) >= 1 - tolerance
    a, b = (pq.read_table(where / "spectrum.parquet").to_pydict() for where in (folder, both.folder))
    for column in ("singular_value", "explained_variance_ratio"):
        assert a[column] == pytest.approx(b[column], rel=tolerance), column
    a, b = (load_file(where / "eva_state_dict.safetensors") for where in (folder, both.folder))
    for name, rows_RD in b.items():
        torch.testing.assert_close(a[name], rows_RD, rtol=1e-5, atol=1e-6)
    for key in ("members", "n_components", "rows", "updates"):
        ours, theirs = (
            {tap: group[key] for tap, group in m["input_groups"].items()} for m in (manifest, both.manifest)
        )
        assert ours == theirs, key


def test_the_components_of_a_run_are_those_of_the_sums_that_it_kept(keeping):
    kept = keeping("first", tau=0.5)
    stored = restore_artifact(kept.folder)
    assert stored.result.covariance == kept.folder / COVARIANCE
    with open_covariance(stored.result.covariance) as sums:
        for group in stored.result.state.plan.groups:
            found = CovarianceTracker(group.n_components).components(sums.state(group))
            theirs = stored.result.components[group.index]
            assert torch.equal(found.v_KD, theirs.v_KD), group.tap
            assert torch.equal(found.singular_values_K, theirs.singular_values_K), group.tap
            assert sums.state(group).moments.rows == stored.result.state.groups[group.index].rows


def test_a_run_is_answered_only_by_an_artifact_with_all_its_files(keeping, halves, configure, tmp_path, no_figures):
    kept = keeping("first", tau=0.5)
    run = prepare(configure_like(kept, configure, halves))
    bare = replace(run.config, solver=SolverConfig(SolverName.covariance))
    assert run.fingerprint == kept.fingerprint == prepare(bare).fingerprint
    assert is_stored(run) and is_stored(prepare(bare))  # more than was asked for is an answer
    elsewhere = replace(run.config, store=replace(run.config.store, url=str(tmp_path / "bare")))
    bare = own_run(replace(elsewhere, solver=bare.solver))
    assert COVARIANCE not in bare.manifest["files"] and f"`{COVARIANCE}`" not in (bare.folder / "README.md").read_text()
    assert bare.manifest["config"]["solver"]["keep_covariance"] is False
    again = prepare(elsewhere)
    assert again.fingerprint == bare.fingerprint and not is_stored(again)
    published = own_run(elsewhere)
    assert is_stored(again) and published.fingerprint == bare.fingerprint
    assert (published.folder / COVARIANCE).read_bytes() == (kept.folder / COVARIANCE).read_bytes()
    assert f"`{COVARIANCE}`" in (published.folder / "README.md").read_text()
    for name in ("eva_state_dict.safetensors", "components.safetensors", "spectrum.parquet"):
        assert published.manifest["files"][name] == bare.manifest["files"][name], name


def configure_like(kept, configure, halves) -> Config:
    """Return the settings of a run of `keeping`."""
    path, steps = halves["first"]
    config = configure(solver=KEEP, eva=EPOCH | {"max_steps": steps, "tau": 0.5}, cluster={"num_workers": 1})
    config = replace(config, data=replace(config.data, path=str(path)))
    assert kept.manifest["config"]["store"]["url"] == config.store.url
    return config


def test_a_store_that_can_only_be_read_does_not_answer_without_the_file(keeping, configure, halves, monkeypatch):
    run = prepare(configure_like(keeping("first", tau=0.5), configure, halves))

    def refuse(self):
        raise StoreError("read-only")

    monkeypatch.setattr("eva_dist.store.store.Store.check_writable", refuse)
    config = replace(run.config, artifact=replace(run.config.artifact, revision="first"))
    prepare(config)
    found = run.store.find(run.fingerprint)
    without = {name: entry for name, entry in found.manifest["files"].items() if name != COVARIANCE}
    monkeypatch.setattr(
        "eva_dist.store.store.Store.find", lambda *_: replace(found, manifest=found.manifest | {"files": without})
    )
    with pytest.raises(StoreError, match="read-only"):
        prepare(config)


def test_the_plan_counts_the_file_to_its_header(keeping, configure, halves):
    kept = keeping("first", tau=0.5)
    config = configure_like(kept, configure, halves)
    found = estimate(config, read_architecture(config.model), CPU)
    file = kept.folder / COVARIANCE
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert found.artifact.covariance == file.stat().st_size - header
    bare = estimate(replace(config, solver=SolverConfig(SolverName.covariance)), read_architecture(config.model), CPU)
    assert bare.artifact.covariance == 0
    assert found.artifact.total - bare.artifact.total == found.artifact.covariance
    assert "for eva-dist merge" in to_text(found) and "for eva-dist merge" not in to_text(bare)


def test_a_submission_that_keeps_is_another_job(configure, tmp_path):
    keys = []
    for keep in (True, False):
        config = configure(solver={"name": SolverName.covariance, "keep_covariance": keep})
        identity = identify(config, tmp_path)
        keys.append((identity.key, identity.fingerprint))
    assert keys[0][1] == keys[1][1] and keys[0][0] != keys[1][0]


@pytest.mark.parametrize("solver", [SolverName.subspace, SolverName.incremental])
def test_other_solvers_have_interruptible(solver):
    message = f"solver.keep_covariance=true must come with solver=covariance: {solver.value} has none to keep"
    assert message in list(SolverConfig(solver, keep_covariance=True).problems())
    with pytest.raises(ConfigError, match="keep_covariance"):
        tiny_config(Path("m"), Path("d"), Path("s"), solver={"name": solver, "keep_covariance": True})
