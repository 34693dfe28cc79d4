"""Signs, cosines, convergence, and the rows that become LoRA's A."""

import copy

import pytest
import torch

from eva_dist.numerics.components import Components, adapter_rows, component_cosines, fix_signs, is_converged


@pytest.fixture
def components():
    generator = torch.Generator().manual_seed(0)
    v_KD = torch.linalg.qr(torch.randn(9, 9, generator=generator)).Q[:4]
    return Components(v_KD, torch.tensor([100.0, 9.0, 4.0, 0.25]), torch.tensor([0.8, 0.1, 0.05, 0.01]))


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


@pytest.mark.parametrize(
    ("cosines", "rank", "tau", "expected"),
    [
        ([0.99, 0.98, 0.5], 2, 0.98, True),  # >= tau, and only the first two count
        ([0.99, 0.98, 0.5], 3, 0.98, False),
        ([0.5, 0.99, 0.99], 2, 0.98, False),
        ([0.1], 0, 0.99, True),
        (None, 0, 0.99, True),
        (None, 1, 0.0, False),
        ([-1.0], 1, 0.99, False),
        ([float("nan")], 1, 0.5, False),
    ],
)
def test_converged_over_the_components_that_the_allocation_gives(cosines, rank, tau, expected):
    cosines_K = None if cosines is None else torch.tensor(cosines, dtype=torch.float64)
    assert is_converged(cosines_K, rank, tau) is expected


@pytest.mark.parametrize("rank", [0, 1, 4])
@pytest.mark.parametrize("whiten", [False, True])
def test_adapter_rows_are_float32_contiguous_and_a_copy(components, rank, whiten):
    before = copy.deepcopy(components)
    rows = adapter_rows(components, rank, whiten)
    assert rows.shape == (rank, 9) and rows.dtype == torch.float32 and rows.is_contiguous()
    rows.fill_(7.0)
    assert torch.equal(components.v_KD, before.v_KD)
    assert torch.equal(components.singular_values_K, before.singular_values_K)


@pytest.mark.parametrize("layout", [lambda v: v, lambda v: v.mT.contiguous().mT, lambda v: v.double()])
def test_adapter_rows_do_not_depend_on_how_the_components_lie_in_memory(components, layout):
    laid_out = Components(layout(components.v_KD), components.singular_values_K, components.explained_variance_ratio_K)
    rows = adapter_rows(laid_out, 3, whiten=False)
    assert torch.equal(rows, components.v_KD[:3]) and rows.is_contiguous()


def test_whitening_divides_by_the_root_of_the_singular_value_once_for_every_member_of_a_group(components):
    expected = components.v_KD / torch.tensor([10.0, 3.0, 2.0, 0.5])[:, None]
    for _ in range(3):  # q, k and v share one SVD
        torch.testing.assert_close(adapter_rows(components, 4, whiten=True), expected)


def test_whitening_a_component_without_variance_gives_no_infinity():
    components = Components(torch.eye(2), torch.tensor([4.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert adapter_rows(components, 2, whiten=True).tolist() == [[0.5, 0.0], [0.0, 1.0]]
