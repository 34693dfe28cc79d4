"""Points from a multirun folder: how each ended, and what ails it."""

import json
import os
import shutil

import pytest
import yaml

from eva_dist.errors import ConfigError
from eva_dist.report.read_multirun import read_points
from eva_dist.report.settings import label, shared, short, varied


def test_a_folder_without_points_is_refused(tmp_path):
    (tmp_path / "0").touch()  # a file, not a point
    with pytest.raises(ConfigError, match=r"FOLDER=.* must be a Hydra multirun folder.*multirun/precompute"):
        read_points(tmp_path)
    with pytest.raises(ConfigError, match="FOLDER="):
        read_points(tmp_path / "nowhere")


def test_every_way_to_end(sweep):
    sweep.done(rho=1.0)
    sweep.done(rho=2.0, status="cached")
    sweep.failed("NotConvergedError", "max_steps=3 was reached", "eva.rho=3.0", rho=3.0)
    sweep.begun("eva.rho=4.0", rho=4.0)
    points = read_points(sweep.folder)
    assert [point.status for point in points] == ["done", "cached", "failed", "not_begun"]
    assert [point.number for point in points] == [0, 1, 2, 3]
    assert (points[2].problem.type, points[2].problem.message) == ("NotConvergedError", "max_steps=3 was reached")
    assert points[3].problem is None and points[3].artifact is None
    assert points[1].artifact is not None
    assert varied(points) == ("eva.rho",)
    assert [label(point, varied(points)) for point in points] == ["rho=1.0", "rho=2.0", "rho=3.0", "rho=4.0"]
    assert shared(points)["eva.tau"] == 0.9 and "eva.rho" not in shared(points)


def test_points_are_in_the_order_of_their_numbers(sweep):
    for rho in range(1, 13):
        sweep.begun(rho=float(rho))
    assert [point.settings["eva.rho"] for point in read_points(sweep.folder)] == [float(rho) for rho in range(1, 13)]


def test_an_artifact_that_is_gone(sweep):
    _, snapshot = sweep.done()
    snapshot.unlink()
    (sweep.store.root / f"objects/manifests/{snapshot.name}.json").unlink()
    (point,) = read_points(sweep.folder)
    assert point.status == "missing" and point.problem.type == "ArtifactNotFoundError"
    assert "compute the point again" in point.problem.message


def test_a_revision_that_moved_leaves_the_point_its_snapshot(sweep):
    _, first = sweep.done(rho=1.0)
    _, second = sweep.done(rho=2.0)
    link = sweep.store.root / "team/tiny/point-rho1.0"
    link.unlink()
    link.symlink_to(second)
    points = read_points(sweep.folder)
    assert points[0].artifact.folder == first and points[0].artifact.url == first.as_uri()
    assert points[1].artifact.url == (sweep.store.root / "team/tiny/point-rho2.0").as_uri()
    first.unlink()
    moved, _ = read_points(sweep.folder)
    assert moved.status == "missing" and "holds the artifact" in moved.problem.message


def test_an_artifact_that_was_copied_out_of_its_store(sweep, tmp_path):
    folder, snapshot = sweep.done()
    shutil.copytree(snapshot, tmp_path / "copy")
    snapshot.unlink()
    result = json.loads((folder / "result.json").read_text()) | {"url": str(tmp_path / "copy")}
    (folder / "result.json").write_text(json.dumps(result))
    (point,) = read_points(sweep.folder)
    assert point.status == "done" and point.artifact.url == (tmp_path / "copy").as_uri()


@pytest.mark.parametrize("file", ["eva_state_dict.safetensors", "spectrum.parquet", "adapter_model.safetensors"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_artifact(sweep, file, harm):
    _, snapshot = sweep.done()
    content = bytearray((snapshot / file).read_bytes())
    content[len(content) // 2] ^= 1
    (snapshot / file).write_bytes(content if harm == "flip" else content[:40])
    if harm == "remove":
        (snapshot / file).unlink()
    (point,) = read_points(sweep.folder)
    assert (point.status, point.problem.type, point.artifact) == ("damaged", "IntegrityError", None)
    assert file in point.problem.message


@pytest.mark.parametrize("text", ["", "[]", '{"fingerprint": 1}', "\xff"])
def test_a_manifest_that_is_none(sweep, text):
    _, snapshot = sweep.done()
    (snapshot / "manifest.json").write_bytes(text.encode("latin-1"))
    (point,) = read_points(sweep.folder)
    assert point.status in ("damaged", "missing") and point.problem is not None


def test_files_that_contradict_each_other(sweep):
    _, snapshot = sweep.done()
    manifest = json.loads((snapshot / "manifest.json").read_text())
    name = next(iter(manifest["layers"]))
    manifest["layers"][name]["rank"] += 1
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    (point,) = read_points(sweep.folder)
    assert point.status == "damaged" and f"layer {name} has rank" in point.problem.message


@pytest.mark.parametrize("text", ["", "[]", "null", '{"url": 3}', '{"url": "file:///x"'])
def test_a_result_that_is_none(sweep, text):
    folder, _ = sweep.done()
    (folder / "result.json").write_text(text)
    (point,) = read_points(sweep.folder)
    assert point.status == "damaged" and "result.json is not what a run prints" in point.problem.message


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"pass_seconds": float("nan")}, {"steps": "7"}, {"url": None}])
def test_a_result_whose_numbers_cannot_be(sweep, wrong):
    folder, _ = sweep.done()
    result = json.loads((folder / "result.json").read_text()) | wrong
    (folder / "result.json").write_text(json.dumps(result))
    (point,) = read_points(sweep.folder)
    assert point.status == "damaged" and point.result is None


def test_a_url_that_is_no_folder(sweep):
    folder, _ = sweep.done()
    result = json.loads((folder / "result.json").read_text()) | {"url": "https://example.com/team/tiny"}
    (folder / "result.json").write_text(json.dumps(result))
    (point,) = read_points(sweep.folder)
    assert (point.status, point.problem.type) == ("damaged", "ConfigError")


def test_an_error_that_does_not_say_why(sweep):
    (sweep.begun() / "error.json").write_text("{")
    (point,) = read_points(sweep.folder)
    assert point.status == "failed" and "does not say why" in point.problem.message


def test_of_result_and_error_the_newer_one_counts(sweep):
    folder, _ = sweep.done()
    (folder / "error.json").write_text(json.dumps({"type": "StoreError", "message": "full"}))
    for error_age, status in ((10, "failed"), (-10, "done")):
        now = (folder / "result.json").stat().st_mtime
        os.utime(folder / "error.json", (now + error_age, now + error_age))
        assert read_points(sweep.folder)[0].status == status


def test_settings_of_a_point_without_its_config_come_from_its_overrides(sweep):
    sweep.done(rho=1.0)
    sweep.begun("eva.rho=2.5", "solver=covariance", "+model.config_overrides.num_hidden_layers=2", config=False)
    points = read_points(sweep.folder)
    assert points[1].settings["eva.rho"] == 2.5
    assert varied(points) == ("eva.rho", "model.config_overrides.num_hidden_layers")
    assert label(points[1], varied(points)) == "rho=2.5 num_hidden_layers=2"
    assert shared(points)["eva.tau"] == 0.9  # nothing says that the other point has another


def test_settings_that_only_some_points_have_vary_but_names_do_not(sweep):
    for revision, layers in (("a", {}), ("b", {"num_hidden_layers": 2})):
        config = sweep.begun(f"artifact.revision={revision}") / ".hydra/config.yaml"
        written = yaml.safe_load(config.read_text())
        written["artifact"]["revision"], written["model"]["config_overrides"] = revision, layers
        config.write_text(yaml.safe_dump(written))
    points = read_points(sweep.folder)
    assert varied(points) == ("model.config_overrides.num_hidden_layers",)
    assert [label(point, varied(points)) for point in points] == ["point 0", "num_hidden_layers=2"]


def test_keys_keep_what_tells_them_apart():
    assert short(["eva.rho", "solver.seed", "data.seed"]) == {
        "eva.rho": "rho",
        "solver.seed": "solver.seed",
        "data.seed": "data.seed",
    }
