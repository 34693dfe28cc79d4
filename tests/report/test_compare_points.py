"""The figures of a report against direct computation from the artifacts' own files."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from eva_dist.report.agreement import agreement
from eva_dist.report.compare_points import compare, most_different
from eva_dist.report.read_multirun import read_points
from eva_dist.transform.compare import subspace_overlap
from tests.report.sweeps import KINDS


def projector(rows_KD: np.ndarray) -> np.ndarray:
    """Onto the span of the rows, by the pseudo-inverse: no QR, no whitening to undo."""
    rows = rows_KD.astype(np.float64)
    return np.linalg.pinv(rows) @ rows


def overlap_by_projectors(a: dict, b: dict) -> float:
    found = [
        np.trace(projector(a[name]) @ projector(b[name])) / min(len(a[name]), len(b[name]))
        for name in a.keys() & b.keys()
        if len(a[name]) and len(b[name])
    ]
    return float(np.mean(found))


@pytest.fixture
def three(sweep, a_pass):
    """Points that differ in angle, in rho and in whitening; return the comparison and their snapshots."""
    made = [
        sweep.done(a_pass(rho=1.0, tau=0.8), rho=1.0, tau=0.8),
        sweep.done(a_pass(rho=2.0, tau=0.9, angle=0.3), rho=2.0, tau=0.9),
        sweep.done(a_pass(rho=3.0, tau=0.99, angle=0.7, whiten=True), rho=3.0, tau=0.99, whiten=True),
    ]
    return compare(read_points(sweep.folder)), [snapshot for _, snapshot in made]


def test_each_figure_of_a_point(three):
    found, snapshots = three
    for figures, point, snapshot in zip(found.figures, found.points, snapshots, strict=True):
        manifest = json.loads((snapshot / "manifest.json").read_text())
        spectrum = pq.read_table(snapshot / "spectrum.parquet").to_pylist()
        weights = load_file(snapshot / "adapter_model.safetensors")
        ranks = {name: layer["rank"] for name, layer in manifest["layers"].items()}
        assert figures.total_rank == sum(ranks.values()) == 6 * 4
        assert figures.largest_rank == max(ranks.values())
        assert figures.layers_of_rank_0 == list(ranks.values()).count(0)
        assert figures.trainable_parameters == sum(array.size for array in weights.values())
        kept = sum(row["explained_variance_ratio"] for row in spectrum if row["kept"])
        assert figures.explained_variance == pytest.approx(kept / 6, rel=1e-12)
        assert (figures.steps, figures.tokens, figures.pass_seconds) == (manifest["steps"], manifest["tokens"], 3.5)
        assert (figures.layers, figures.layers_converged) == (6, 6)
        for layer in point.artifact.layers:
            tensors = [weights.get(f"base_model.model.{layer.name}.lora_{ab}.weight") for ab in "AB"]
            assert layer.parameters == sum(0 if tensor is None else tensor.size for tensor in tensors)
            assert layer.explained_variance == pytest.approx(
                sum(row["explained_variance_ratio"] for row in spectrum if row["layer"] == layer.name and row["kept"])
            )


def test_steps_to_converge_count_the_steps_up_to_the_last_update(three):
    found, _ = three
    # Cosines are known from the second step on, 0.5 then 0.95 then 0.995: tau = 0.8 and 0.9 take three, 0.99 four.
    assert [{layer.steps_to_converge for layer in point.artifact.layers} for point in found.points] == [{3}, {3}, {4}]
    assert [figures.steps for figures in found.figures] == [3, 3, 4]


def test_agreement_of_every_pair(three):
    found, snapshots = three
    tensors = [load_file(snapshot / "eva_state_dict.safetensors") for snapshot in snapshots]
    for a, b in itertools.product(range(3), repeat=2):
        overlap, equal = found.between(a, b)
        assert overlap == pytest.approx(overlap_by_projectors(tensors[a], tensors[b]), abs=1e-6)
        assert equal == np.mean([len(tensors[a][name]) == len(tensors[b][name]) for name in tensors[a]])
    assert found.between(1, 1) == (pytest.approx(1.0), 1.0)
    assert found.between(0, 1)[0] < 0.95  # a turn of 0.3: cos^2 = 0.91
    assert found.reference == 2
    assert [figures.overlap for figures in found.figures] == [found.between(at, 2)[0] for at in range(3)]
    assert most_different(found) == min(
        itertools.combinations(range(3), 2), key=lambda pair: overlap_by_projectors(*(tensors[at] for at in pair))
    )


def test_overlap_is_that_of_subspaces_whatever_their_bases():
    generator = np.random.default_rng(0)
    q, _ = np.linalg.qr(generator.standard_normal((9, 6)))
    turned = q[:, :4] @ np.linalg.qr(generator.standard_normal((4, 4)))[0]
    matrix = subspace_overlap([basis.T for basis in (q[:, :4], turned, q[:, :2], q[:, 3:6])])
    np.testing.assert_allclose(
        matrix, [[1, 1, 1, 1 / 3], [1, 1, 1, 1 / 3], [1, 1, 1, 0], [1 / 3, 1 / 3, 0, 1]], atol=1e-12
    )
    assert matrix.max() <= 1.0


def test_whitening_changes_no_overlap(sweep, a_pass):
    for whiten in (False, True):
        sweep.done(a_pass(whiten=whiten), whiten=whiten)
    points = read_points(sweep.folder)
    found = agreement([point.artifact for point in points])
    np.testing.assert_allclose(found.overlap_NN, 1.0, atol=1e-6)


def test_points_of_other_targets_are_compared_over_what_is_common(sweep, a_pass):
    all_kinds, q, down = None, ["self_attn.q_proj"], ["mlp.down_proj"]
    for kinds, angle in ((all_kinds, 0.0), (q, 0.4), (down, 0.0)):
        sweep.done(a_pass(angle=angle, kinds=kinds), target_modules=kinds)
    found = compare(read_points(sweep.folder))
    assert [figures.layers for figures in found.figures] == [6, 2, 2]
    assert found.between(1, 2) == (None, None)
    a, b = (load_file(found.points[at].artifact.folder / "eva_state_dict.safetensors") for at in (0, 1))
    assert found.between(0, 1)[0] == pytest.approx(overlap_by_projectors(a, b), abs=1e-6)
    equal = [len(a[name]) == len(b[name]) for name in b]
    assert len(equal) == 2 and found.between(0, 1)[1] == sum(equal) / 2
    assert found.reference == 0
    assert found.figures[2].explained_variance == pytest.approx(
        sum(layer.explained_variance for layer in found.points[2].artifact.layers) / 2
    )


def test_layers_of_one_name_and_two_widths_are_compared_by_rank_alone(sweep, a_pass, monkeypatch):
    sweep.done(a_pass())
    monkeypatch.setitem(KINDS, "mlp.down_proj", (20, 16))
    sweep.done(a_pass(), lora_alpha=3)
    found = compare(read_points(sweep.folder))
    tensors = [load_file(point.artifact.folder / "eva_state_dict.safetensors") for point in found.points]
    attention = [{name: rows for name, rows in of_one.items() if "self_attn" in name} for of_one in tensors]
    assert found.between(0, 1)[0] == pytest.approx(overlap_by_projectors(*attention), abs=1e-6)
    assert found.between(0, 1)[1] == np.mean([len(tensors[0][name]) == len(tensors[1][name]) for name in tensors[0]])


def test_layers_of_rank_0_span_nothing_and_count_as_equal(sweep, a_pass, monkeypatch):
    monkeypatch.setattr("tests.artifact.conftest.SMALL", "layers.0.self_attn.q_proj")
    for angle in (0.0, 0.5):
        sweep.done(a_pass(angle=angle), lora_alpha=1 + angle)
    found = compare(read_points(sweep.folder))
    tensors = [load_file(point.artifact.folder / "eva_state_dict.safetensors") for point in found.points]
    assert [figures.layers_of_rank_0 for figures in found.figures] == [2, 2]
    overlap, equal = found.between(0, 1)
    assert overlap == pytest.approx(overlap_by_projectors(*tensors), abs=1e-6) and overlap < 0.9
    assert equal == 1.0
    nothing = [layer for layer in found.points[0].artifact.layers if layer.rank == 0]
    assert [(layer.explained_variance, layer.parameters) for layer in nothing] == [(0.0, 0)] * 2


def test_nothing_converged(sweep, a_pass):
    turning = tuple(group.tap for group in a_pass().state.plan.groups)
    sweep.done(a_pass(turning=turning))
    found = compare(read_points(sweep.folder))
    assert found.points[0].status == "not_converged"
    assert found.figures[0].layers_converged == 0
    assert {layer.steps_to_converge for layer in found.points[0].artifact.layers} == {None}
    assert not any(layer.converged for layer in found.points[0].artifact.layers)


def test_an_effect_is_the_mean_over_pairs_that_differ_in_nothing_else(sweep, a_pass):
    angles = {0.8: 0.0, 0.9: 0.2, 0.99: 0.5}
    for rho, tau in [(1.0, 0.8), (1.0, 0.9), (1.0, 0.99), (2.0, 0.8), (2.0, 0.99), (3.0, 0.8)]:
        sweep.done(a_pass(angle=angles[tau], rho=rho, tau=tau), rho=rho, tau=tau)
    found = compare(read_points(sweep.folder))
    effects = {effect.key: effect for effect in found.effects}
    assert found.varied == ("eva.rho", "eva.tau")
    of_tau = effects["eva.tau"]
    assert (of_tau.low, of_tau.high, of_tau.pairs) == (0.8, 0.99, 2)  # at rho 1 and 2; 3.0 has one tau alone
    assert (of_tau.before.steps, of_tau.after.steps) == (3, 4)
    assert of_tau.overlap == pytest.approx((found.between(0, 2)[0] + found.between(3, 4)[0]) / 2)
    of_rho = effects["eva.rho"]
    assert (of_rho.low, of_rho.high, of_rho.pairs) == (1.0, 3.0, 1)
    assert of_rho.before.explained_variance == found.figures[0].explained_variance
    assert of_rho.after.explained_variance == found.figures[5].explained_variance
