"""What a tracker has found: the leading components of a layer's inputs, and when they have stopped turning."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Components:
    """Leading principal components, strongest first.

    Attributes:
        v_KD: right-singular vectors of the centred rows, unit norm, one per row.
        singular_values_K: of the centred rows (not divided by the number of rows).
        explained_variance_ratio_K: `singular_values_K**2` over the *total* variance, all D directions.
    """

    v_KD: Tensor
    singular_values_K: Tensor
    explained_variance_ratio_K: Tensor


def fix_signs(v_KD: Tensor) -> Tensor:
    """Return the rows (`[..., K, D]`) with the sign that makes each row's largest-magnitude entry positive.

    The rule of `IncrementalPCA._svd_flip(u_based_decision=False)` in scikit-learn and PEFT.
    """
    least_K1, most_K1 = torch.aminmax(v_KD, dim=-1, keepdim=True)
    return torch.where(most_K1 < -least_K1, -v_KD, v_KD)


def component_cosines(v_KD: Tensor, previous_KD: Tensor) -> Tensor:
    """Return `[K]` cosines between each component and itself one update earlier (arXiv 2410.07170, section 3.1).

    Rows, of unit norm, are compared by position and with their sign, as PEFT does: components
    that swap places, or turn round, have not converged. (To take v and -v for the same, as they
    are, was tried: a tenth fewer updates, but layers stop so early that PEFT's own test of
    consistency over data orders fails.) Float64, on their device.
    """
    return torch.linalg.vecdot(v_KD.double(), previous_KD.double())
