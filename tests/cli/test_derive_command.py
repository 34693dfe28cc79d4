"""`eva-dist derive` on a hand-made artifact: one JSON line, the rest on standard error, exit codes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import eva_dist
from eva_dist.artifact.write import Provenance, build_artifact
from eva_dist.calibration.controller import GroupReport, PointResult, StepReport, advance, first_state
from eva_dist.cli.main import main
from eva_dist.config import Config, DataConfig, EvaConfig, ModelConfig
from eva_dist.hashing import fingerprint
from eva_dist.methods.eva import Eva
from eva_dist.numerics.components import Components
from eva_dist.plan import make_layer, make_plan
from eva_dist.store.store import Store


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A published artifact of two layers that converged to tau=0.95 in two steps."""
    eva = EvaConfig(r=2, rho=2.0, tau=0.95, target_modules=["a", "b"])
    layers = [make_layer(f"h.0.{name}", 8, 8, eva.r, eva.rho) for name in "ab"]
    plan = make_plan(layers, [["h.0.a"], ["h.0.b"]])
    ratios_K = torch.tensor([0.4, 0.2, 0.1, 0.05], dtype=torch.float64)
    components = {
        i: Components(torch.eye(8)[:4], (100 * ratios_K / (i + 1)).sqrt(), ratios_K / (i + 1)) for i in (0, 1)
    }
    state = first_state(plan, Eva(eva.tau), eva.max_steps)
    for cosines_K in (None, torch.tensor([0.999, 0.98, 0.97, 0.5], dtype=torch.float64)):
        reports = tuple(GroupReport(i, 9, components[i].explained_variance_ratio_K, cosines_K) for i in (0, 1))
        state = advance(state, [StepReport(reports, 9, 0, {})])
    assert state.stop is not None
    store = Store(str(tmp_path_factory.mktemp("cli") / "store"))
    decisive = {
        "method": "eva",
        "eva": {"r": 2, "rho": 2.0, "tau": 0.95, "whiten": False},
        "layers": [[layer.name, layer.r, layer.max_rank] for layer in layers],
    }
    provenance = Provenance(
        fingerprint=fingerprint(decisive),
        decisive=decisive,
        config=json.loads(json.dumps(Config(ModelConfig("gpt"), DataConfig("a.txt"), eva).to_dict())),
        model={"id": "gpt", "revision": None, "task_type": None},
        **{key: {} for key in ("tokenizer", "data", "versions")},
        **{"world_size": 1, "url": "file:///s", "repo_id": "team/tiny", "revision": "v1", "created": "2026-01-02"},
    )
    result = PointResult(state, components)
    return store.publish(
        provenance.fingerprint, "team/tiny", "v1", lambda folder: build_artifact(folder, result, eva, provenance)
    )


@pytest.fixture
def run(capfd, tmp_path):
    def start(*arguments):
        code = 0
        try:
            main(["derive", *map(str, arguments), "--store", str(tmp_path / "store")])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return start


def test_one_json_line_like_a_run_s(source, run, tmp_path):
    code, out, err = run(source.url, "eva.rho=1.5", "eva.whiten=true")
    assert (code, err) == (0, "")
    outcome = json.loads(out)
    assert outcome.keys() == {
        *("url", "repo_id", "revision", "fingerprint", "status", "steps", "tokens", "seconds", "pass_seconds"),
        *("layers_converged", "layers_total"),
    }
    assert len(out.splitlines()) == 1
    assert (outcome["status"], outcome["repo_id"], outcome["revision"]) == (
        "done",
        "team/tiny",
        "rho1.5-tau0.95-whiten-derived",
    )
    assert (outcome["steps"], outcome["tokens"], outcome["layers_converged"]) == (2, 18, 2)
    folder = tmp_path / "store/team/tiny/rho1.5-tau0.95-whiten-derived"
    assert outcome["url"] == folder.as_uri()
    rows = eva_dist.load_eva_state_dict(outcome["url"], prefix="")
    assert {name: len(a_RD) for name, a_RD in rows.items()} == {"h.0.a": 3, "h.0.b": 1}
    assert {path.name for path in folder.glob("*.png")} == {"ranks.png", "convergence.png", "spectra.png"}
    assert json.loads(run(source.url, "eva.rho=1.5", "eva.whiten=true")[1])["status"] == "cached"


def test_a_name_in_the_store_and_a_name_of_one_s_own(source, run, tmp_path):
    shutil.copytree(source.folder.parents[2], tmp_path / "store", symlinks=True)
    code, out, _ = run("team/tiny@v1", "eva.rho=1.5", "--repo-id", "team/mine", "--revision", "narrow")
    assert code == 0
    assert json.loads(out)["url"] == (tmp_path / "store/team/mine/narrow").as_uri()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["eva.rho=3"], "error: eva.rho=3.0 cannot be derived: 2 of 2 input groups need more components"),
        (["eva.tau=0.99"], "h.0.a: 2 of 3 components below, lowest cosine 0.970000"),
        (["eva.rhoo=3"], "error: eva.rhoo=3 is no setting; did you mean eva.rho?"),
        (["eva.rho=x"], "error: eva.rho=x must be a number"),
        (["data=minilm"], "error: data=minilm cannot be derived: the stored vectors are of the source's data"),
        (["eva.rho=1.5", "--repo-id", "tiny"], "error: artifact.repo_id=tiny must be namespace/name"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_derived_is_exit_code_2(source, run, tmp_path, words, complaint):
    code, out, err = run(source.url, *words)
    assert (code, out) == (2, "") and complaint in err and "Traceback" not in err
    assert not (tmp_path / "store").exists()


def test_accepted_as_it_is_is_said(source, run):
    code, out, err = run(source.url, "eva.tau=0.99", "eva.on_max_steps=accept")
    assert code == 0 and json.loads(out)["status"] == "not_converged"
    assert err == "1 of 2 layers have not converged to eva.tau; they were taken as they are (eva.on_max_steps=accept)\n"


def test_an_older_artifact_is_refused_with_what_to_do(source, run, tmp_path):
    old = shutil.copytree(source.folder, tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    for key in ("decisive", "input_groups", "derived_from", "exhausted"):
        del manifest[key]
    del manifest["files"]["components.safetensors"]
    (old / "components.safetensors").unlink()
    (old / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    code, out, err = run(old, "eva.whiten=true")
    assert (code, out) == (2, "")
    assert "format_version=1, must be 2: it keeps no components.safetensors; compute it again with" in err
    assert eva_dist.load_eva_state_dict(old).keys() == {"base_model.model.h.0.a", "base_model.model.h.0.b"}


def test_no_source_and_a_damaged_one_are_exit_code_1(source, run, tmp_path):
    code, out, err = run("team/none@v1", "eva.rho=1.5")
    assert (code, out) == (1, "") and "has no team/none" in err
    cut = shutil.copytree(source.folder, tmp_path / "cut")
    (cut / "spectrum.parquet").write_bytes(b"")
    code, out, err = run(cut, "eva.rho=1.5")
    assert (code, out) == (1, "") and "is incomplete" in err
    assert not Path(tmp_path / "store").exists()


def test_a_source_that_was_named_gives_its_name(source, run, tmp_path):
    """What was copied to another namespace stays there: tokens are given by namespace."""
    store = Store(str(tmp_path / "store"))
    store.publish_folder(source.folder, "mine/copy", "v1")
    code, out, _ = run("mine/copy@v1", "eva.whiten=true")
    assert code == 0 and json.loads(out)["repo_id"] == "mine/copy"
    assert {one.repo_id for one in store.revisions()} == {"mine/copy"}
