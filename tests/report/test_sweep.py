"""`write_sweep`: its three files and the text table, and the command."""

import hashlib
import json
import shutil

import pyarrow.parquet as pq
import pytest

import eva_dist
import eva_dist.report.files
from eva_dist.cli.main import main
from eva_dist.errors import ConfigError, StoreError
from eva_dist.report.sweep import write_sweep

FILES = ["index.html", "sweep.json", "sweep.parquet"]


def written(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.fixture
def mixed(sweep, a_pass):
    """One point computed, one from the store, one failed, one never begun, one whose artifact is gone."""
    sweep.done(a_pass(rho=1.0), rho=1.0)
    sweep.done(a_pass(rho=2.0, angle=0.4), rho=2.0, status="cached", seconds=0.01)
    sweep.failed("NotConvergedError", "max_steps=3 was reached\n  model.layers.0: 3 of 4", "eva.rho=3.0", rho=3.0)
    sweep.begun("eva.rho=4.0", rho=4.0)
    _, snapshot = sweep.done(a_pass(rho=5.0), rho=5.0)
    snapshot.unlink()
    (sweep.store.root / f"objects/manifests/{snapshot.name}.json").unlink()
    return sweep.folder


def test_the_manifest_says_what_varies_what_is_shared_and_how_each_point_ended(mixed):
    report = write_sweep(mixed)
    assert written(mixed) == FILES
    read = json.loads((mixed / "sweep.json").read_text())
    assert read == report.manifest
    assert read["varied"] == ["eva.rho"] and read["shared"]["eva.tau"] == 0.9
    assert read["eva_dist"] == eva_dist.__version__ and read["created"].endswith("+00:00")
    points = read["points"]
    assert [point["status"] for point in points] == ["done", "cached", "failed", "not_begun", "missing"]
    assert [point["settings"] for point in points] == [{"eva.rho": rho} for rho in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert [point["figures"] is None for point in points] == [False, False, True, True, True]
    assert points[2]["error"] == {
        "type": "NotConvergedError",
        "message": "max_steps=3 was reached\n  model.layers.0: 3 of 4",
    }
    assert points[0]["revision"] == "point-rho1.0" and points[0]["url"].endswith("/store/team/tiny/point-rho1.0")
    assert points[0]["snapshot_url"].endswith(points[0]["fingerprint"])
    assert points[4]["url"] and points[4]["snapshot_url"] is None
    assert points[2]["overrides"] == ["eva.rho=3.0"]
    assert read["reference"] == 1
    assert read["agreement"]["points"] == [0, 1]
    assert read["agreement"]["overlap"][0][1] == pytest.approx(points[0]["figures"]["overlap"], abs=1e-6)
    for name in ("index.html", "sweep.parquet"):
        content = (mixed / name).read_bytes()
        assert read["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_the_table_has_a_row_a_point_and_layer(mixed):
    report = write_sweep(mixed)
    table = pq.read_table(mixed / "sweep.parquet")
    assert table.column_names == [
        *("point", "name", "revision", "eva.rho", "layer", "input_group", "rank", "steps_to_converge"),
        *("explained_variance", "trainable_parameters", "converged"),
    ]
    rows = table.to_pylist()
    assert len(rows) == 2 * 6
    expected = [
        (point.number, point.settings["eva.rho"], layer.name, layer.rank, layer.explained_variance, layer.parameters)
        for point in report.comparison.points[:2]
        for layer in point.artifact.layers
    ]
    keys = ("point", "eva.rho", "layer", "rank", "explained_variance", "trainable_parameters")
    assert [tuple(row[key] for key in keys) for row in rows] == expected
    assert {(row["point"], row["name"], row["revision"]) for row in rows} == {
        (0, "rho=1.0", "point-rho1.0"),
        (1, "rho=2.0", "point-rho2.0"),
    }
    q, k = rows[0], rows[1]
    assert (q["input_group"], k["input_group"]) == (q["layer"], q["layer"]) and k["layer"].endswith("k_proj")
    assert {row["steps_to_converge"] for row in rows} == {3} and all(row["converged"] for row in rows)


def test_columns_of_settings_keep_their_type(sweep, a_pass):
    points = [
        {"whiten": True, "max_steps": 7, "rho": 2.0, "target_modules": "q_proj", "lora_alpha": 1},
        {"whiten": False, "max_steps": 8, "rho": 3.0, "target_modules": ["k_proj"], "lora_alpha": 2.5},
    ]
    for eva in points:
        sweep.done(a_pass(rho=eva["rho"]), **eva)
    write_sweep(sweep.folder)
    rows = pq.read_table(sweep.folder / "sweep.parquet").to_pylist()
    assert [
        {key: value for key, value in row.items() if key.startswith("eva.")} for row in (rows[0], rows[-1])
    ] == [
        {f"eva.{key}": value for key, value in (points[0] | {"target_modules": '"q_proj"'}).items()},
        {f"eva.{key}": value for key, value in (points[1] | {"target_modules": '["k_proj"]'}).items()},
    ]  # fmt: skip
    assert isinstance(rows[0]["eva.max_steps"], int) and rows[0]["eva.whiten"] is True


def test_no_artifact_at_all_is_a_report_too(sweep):
    sweep.failed("GangError", "no room", rho=1.0)
    sweep.begun(rho=2.0)
    report = write_sweep(sweep.folder)
    assert written(sweep.folder) == FILES
    assert pq.read_table(sweep.folder / "sweep.parquet").num_rows == 0
    assert report.manifest["reference"] is None and report.manifest["agreement"]["overlap"] == []
    assert "point 0 failed: GangError: no room" in report.table()


def test_a_second_report_replaces_the_first(mixed):
    before = write_sweep(mixed).manifest
    shutil.rmtree(mixed / "1")
    after = write_sweep(mixed)
    assert written(mixed) == FILES
    assert [point["number"] for point in after.manifest["points"]] == [0, 2, 3, 4]
    assert after.manifest["files"] != before["files"]
    assert {row["point"] for row in pq.read_table(mixed / "sweep.parquet").to_pylist()} == {0}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(mixed, monkeypatch):
    write_sweep(mixed)
    old = (mixed / "index.html").read_bytes()

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(eva_dist.report.files.os, "replace", refuse)
    with pytest.raises(StoreError, match=r"cannot be written: No space left on device; .*eva-dist report"):
        write_sweep(mixed)
    assert written(mixed) == FILES and (mixed / "index.html").read_bytes() == old


class TestTable:
    def test_a_line_a_point_and_why_some_have_no_figures(self, mixed):
        lines = write_sweep(mixed).table().splitlines()
        assert lines[0].split()[:3] == ["point", "rho", "status"]
        assert [line.split()[:3] for line in lines[1:6]] == [
            ["0", "1.0", "done"],
            ["1", "2.0", "cached"],
            ["2", "3.0", "failed"],
            ["3", "4.0", "not_begun"],
            ["4", "5.0", "missing"],
        ]
        assert lines[6] == "point 2 failed: NotConvergedError: max_steps=3 was reached model.layers.0: 3 of 4"
        assert lines[7].startswith("point 4 missing: ArtifactNotFoundError: no artifact at")
        assert lines[8].startswith("overlap, same ranks: with point 1 ")
        figures = write_sweep(mixed).comparison.figures[0]
        assert lines[1].split()[3:] == [
            f"{figures.total_rank:,}",
            f"{figures.trainable_parameters:,}",
            *(f"{100 * figures.explained_variance:.2f}%", "3", "3.5", "s"),
            *(f"{figures.overlap:.4f}", f"{100 * figures.equal_ranks:.0f}%"),
        ]

    def test_thirty_points_stay_aligned(self, sweep, a_pass):
        for at in range(30):
            rho, tau, whiten = 1.0 + at % 5 / 4, (0.9, 0.95, 0.99)[at // 5 % 3], at >= 15
            if at == 11:
                sweep.failed("StoreError", "x" * 500, rho=rho, tau=tau, whiten=whiten)
            else:
                sweep.done(a_pass(rho=rho, tau=tau, whiten=whiten), rho=rho, tau=tau, whiten=whiten)
        report = write_sweep(sweep.folder)
        lines = report.table().splitlines()
        assert len(lines) == 1 + 30 + 1 + 1
        assert len({line.index(line.split()[4]) for line in lines[1:31]}) == 1  # the status column
        assert len({len(line) for line in lines[:31]}) == 1
        assert max(map(len, lines[:32])) < 200 and lines[31].endswith("…")
        assert (sweep.folder / "index.html").stat().st_size < 1_000_000

    def test_a_message_cannot_steer_the_terminal(self, sweep):
        sweep.failed("StoreError", "gone\x1b[2J\x07 away")
        assert "gone?[2J? away" in write_sweep(sweep.folder).table()


class TestCommand:
    def test_prints_the_table_and_where_the_page_is(self, mixed, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["report", str(mixed)])
        assert not stop.value.code
        out = capsys.readouterr().out
        assert out.startswith("point  rho") and out.endswith(f"page: {mixed / 'index.html'}\n")
        assert written(mixed) == FILES

    def test_json_is_the_manifest_in_one_line(self, mixed, capsys):
        with pytest.raises(SystemExit):
            main(["report", str(mixed), "--json"])
        (line,) = capsys.readouterr().out.splitlines()
        assert json.loads(line) == json.loads((mixed / "sweep.json").read_text())

    def test_a_folder_that_is_no_sweep_is_exit_code_2(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["report", str(tmp_path)])
        assert stop.value.code == 2
        assert "error: FOLDER=" in capsys.readouterr().err
        with pytest.raises(ConfigError):
            write_sweep(tmp_path)
