"""`eva-dist diff` on artifacts whose subspaces were turned by a known angle, and on those that cannot be compared."""

import math

import pytest

from eva_dist.store.open_artifact import open_artifact
from tests.commands import run_command
from tests.made_artifacts import write_artifact


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("made")
    write_artifact(top / "plain")
    write_artifact(top / "turned", angle=math.radians(25.0))
    write_artifact(top / "whitened", whiten=True)
    write_artifact(top / "small", rho=1.0, r=2)
    write_artifact(top / "more", blocks=3, kinds=("self_attn.q_proj", "mlp.down_proj"), model="org/other")
    return top


@pytest.fixture
def run(capsys, folders, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda a, b, *more: run_command(capsys, "diff", folders / a, folders / b, *more)


def test_the_angle_is_that_by_which_the_artifact_was_turned(run):
    found = run("plain", "turned", "--json").json
    assert found["layers_compared"] == found["equal_ranks"] == 6
    with_rank = [layer for layer in found["layers"] if layer["rank_a"]]
    assert with_rank
    for layer in with_rank:
        assert layer["largest_deg"] == pytest.approx(25.0, abs=1e-3)
    assert found["largest_deg"] == pytest.approx(25.0, abs=1e-3)
    ran = run("plain", "turned")
    assert ran.code == 0 and "6 of 6 layers have equal ranks" in ran.out and "25.00°" in ran.out
    assert "settings: the same" in ran.out


def test_whitening_turns_nothing(run):
    found = run("plain", "whitened", "--json").json
    assert found["overlap"] == pytest.approx(1.0, abs=1e-9) and found["largest_deg"] < 1e-3
    assert found["settings"] == {"eva.whiten": {"a": False, "b": True}}


def test_ranks_and_settings_that_differ(run):
    found = run("plain", "small", "--json").json
    assert found["settings"]["eva.r"] == {"a": 4, "b": 2}
    assert found["settings"]["eva.rho"] == {"a": 2.0, "b": 1.0}
    assert found["equal_ranks"] < 6
    both = [layer for layer in found["layers"] if layer["rank_a"] and layer["rank_b"]]
    # the fewer leading components lie in the space of the more
    assert both and all(layer["overlap"] == pytest.approx(1.0, abs=1e-9) for layer in both)
    text = run("plain", "small").out
    assert "eva.rho" in text and "layers that differ most" in text


def test_layers_of_one_alone_are_listed_apart(run):
    found = run("plain", "more", "--json").json
    assert found["only_a"] == [f"model.layers.{block}.self_attn.k_proj" for block in range(2)]
    assert found["only_b"] == ["model.layers.2.self_attn.q_proj", "model.layers.2.mlp.down_proj"]
    ran = run("plain", "more")
    assert "only in A: 2" in ran.out and "only in B: 2" in ran.out
    assert "the base models differ" in ran.err


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_terminal(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, run("plain", "small", "--layers").out.splitlines())) <= width


def test_no_layer_in_common_is_a_clear_error(run, folders, tmp_path):
    write_artifact(tmp_path / "k", kinds=("self_attn.k_proj",))
    write_artifact(tmp_path / "down", kinds=("mlp.down_proj",))
    ran = run(tmp_path / "k", tmp_path / "down")
    assert ran.code == 2 and "A and B have no layer in common: model.layers.0.self_attn.k_proj" in ran.err


def test_a_damaged_artifact_is_an_error(run, tmp_path):
    write_artifact(tmp_path / "cut", rho=2.0)
    (tmp_path / "cut/eva_state_dict.safetensors").write_bytes(b"")
    ran = run("plain", tmp_path / "cut")
    assert ran.code == 1 and "eva_state_dict.safetensors" in ran.err
    assert open_artifact(tmp_path / "cut").snapshot.fingerprint
