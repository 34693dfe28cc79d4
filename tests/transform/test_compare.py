"""Subspace angles against subspaces whose angles are known."""

import numpy as np
import pytest

from eva_dist.transform.compare import compare_layers, orthonormal_rows, principal_angles


def orthogonal(dim: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def turned(basis_a: np.ndarray, outside: np.ndarray, degrees: list[float]) -> np.ndarray:
    """Rows of A, each turned by an angle of its own towards a direction outside of A."""
    angles = np.radians(degrees)[:, None]
    return np.cos(angles) * basis_a + np.sin(angles) * outside


def angles_of(rows_a, rows_b):
    return principal_angles(orthonormal_rows(rows_a), orthonormal_rows(rows_b))


class TestAngles:
    @pytest.mark.parametrize("degrees", [[0, 0, 0], [10, 20, 30], [1e-5, 1e-4, 1e-3], [5, 45, 89.9], [90, 90, 90]])
    def test_they_are_those_by_which_rows_were_turned(self, degrees):
        q = orthogonal(24)
        found = angles_of(q[:3], turned(q[:3], q[3:6], degrees))
        assert found.largest_deg == pytest.approx(max(degrees), abs=1e-7)
        assert found.overlap == pytest.approx(np.mean(np.cos(np.radians(degrees)) ** 2), abs=1e-12)

    def test_rotation_sign_and_scale_of_rows_do_not_count(self):
        q, mix = orthogonal(24), orthogonal(3, 1)
        other = turned(q[:3], q[3:6], [10, 20, 30])
        scaled = np.diag([1e-3, -7.0, 300.0]) @ mix @ other
        assert angles_of(mix @ q[:3], scaled).largest_deg == pytest.approx(30, abs=1e-6)
        assert angles_of(q[:3], mix @ q[:3]).largest_deg == pytest.approx(0, abs=1e-6)

    def test_whitened_float32_rows_are_the_space_of_the_unit_rows(self):
        q = orthogonal(64).astype(np.float32)
        whitened = q[:8] / np.sqrt(np.float32(10.0) ** np.arange(8)[::-1, None])
        found = angles_of(q[:8], whitened.astype(np.float32))
        assert found.largest_deg < 1e-3 and found.overlap == pytest.approx(1, abs=1e-9)

    def test_other_dimensions_have_as_many_angles_as_the_smaller_one(self):
        q = orthogonal(24)
        inside = angles_of(q[:2], orthogonal(5, 2) @ q[:5])
        assert inside.overlap == pytest.approx(1) and inside.largest_deg == pytest.approx(0, abs=1e-6)
        half = angles_of(np.stack([q[0], q[9]]), q[:5])
        assert half.overlap == pytest.approx(0.5) and half.largest_deg == pytest.approx(90)

    def test_rows_that_depend_on_others_add_no_direction(self):
        q = orthogonal(24)
        rows = np.stack([q[0], 2 * q[0], np.zeros(24), q[1] + q[0]])
        assert orthonormal_rows(rows).shape == (2, 24)
        assert angles_of(rows, q[:2]).largest_deg == pytest.approx(0, abs=1e-6)
        assert orthonormal_rows(np.zeros((3, 24))).shape == (0, 24)


class TestLayers:
    def test_what_is_said_of_two_artifacts(self):
        q = orthogonal(24)
        a = {"same": q[:4], "turned": q[:2], "none": q[:0], "wide": q[:2], "mine": q[:1]}
        b = {
            "yours": q[:1],
            "wide": orthogonal(16)[:2],
            "none": q[:3],
            "turned": turned(q[:2], q[4:6], [60, 0]),
            "same": orthogonal(4, 3) @ q[:4],
        }
        found = compare_layers(a, b)
        assert (found.only_a, found.only_b) == (("mine",), ("yours",))
        by_name = {pair.name: pair for pair in found.both}
        assert list(by_name) == ["same", "turned", "none", "wide"]
        assert by_name["none"].angles is None and (by_name["none"].rank_a, by_name["none"].rank_b) == (0, 3)
        assert by_name["wide"].other_width and by_name["wide"].angles is None
        assert by_name["turned"].angles.overlap == pytest.approx((0.25 + 1) / 2)
        assert found.overlap == pytest.approx((1 + 0.625) / 2)
        assert found.largest_deg == pytest.approx(60)
        assert (found.equal_ranks, len(found.comparable)) == (2, 3)

    def test_nothing_shared_is_no_figure(self):
        found = compare_layers({"a": orthogonal(8)[:2]}, {"b": orthogonal(8)[:2]})
        assert (found.both, found.overlap, found.largest_deg) == ((), None, None)

    def test_infinite_rows_are_refused_by_the_layer_s_name(self):
        rows = orthogonal(8)[:2].copy()
        rows[1, 3] = np.nan
        with pytest.raises(ValueError, match="layer h.0: its rows hold NaN or infinity"):
            compare_layers({"h.0": orthogonal(8)[:2]}, {"h.0": rows})
