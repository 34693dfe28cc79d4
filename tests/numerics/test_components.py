"""Signs and cosines of components."""

import pytest
import torch

from eva_dist.numerics.components import component_cosines, fix_signs


def test_the_largest_entry_of_each_row_becomes_positive():
    v_KD = torch.tensor([[0.1, -0.9], [0.9, 0.1], [-0.5, -0.6], [0.0, 0.0]])
    expected_KD = torch.tensor([[-0.1, 0.9], [0.9, 0.1], [0.5, 0.6], [0.0, 0.0]])
    before = v_KD.clone()
    torch.testing.assert_close(fix_signs(v_KD), expected_KD, rtol=0, atol=0)
    assert torch.equal(v_KD, before)
    assert torch.equal(fix_signs(-expected_KD), fix_signs(expected_KD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_signs_keep_the_dtype(dtype):
    assert fix_signs(torch.tensor([[-1.0, 0.0]], dtype=dtype)).dtype == dtype


def test_cosines_are_by_position_with_sign_and_in_float64():
    a_KD = torch.eye(3)
    angle = torch.tensor(0.1, dtype=torch.float64)
    b_KD = torch.eye(3, dtype=torch.float64)
    b_KD[0, :2] = torch.stack((angle.cos(), angle.sin()))
    b_KD[1] = -b_KD[1]
    cosines_K = component_cosines(b_KD, a_KD)
    assert cosines_K.dtype == torch.float64
    torch.testing.assert_close(cosines_K, torch.tensor([float(angle.cos()), -1.0, 1.0], dtype=torch.float64))
    assert component_cosines(a_KD[[1, 0, 2]], a_KD).tolist() == [0.0, 0.0, 1.0]  # swapped places: not converged
