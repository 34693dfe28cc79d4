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


def adapter_rows(components: Components, rank: int, whiten: bool) -> Tensor:
    """Return LoRA's A for one layer: float32 `[rank, in_features]`, contiguous, a copy.

    With `whiten`, row i is divided by `sqrt(singular_values_K[i])`, as PEFT intends
    (`eva.py`, end of `_get_eva_state_dict`). PEFT divides, in place, a view that the
    members of an input group share, so there q, k and v are whitened three times each; here
    every layer is whitened once, from the tracker's own vectors. A component without any
    variance keeps unit norm (PEFT: infinity).
    """
    rows = components.v_KD[:rank].detach().to("cpu", torch.float64)
    if whiten:
        scale_K = components.singular_values_K[:rank].to("cpu", torch.float64).sqrt()
        rows = rows / torch.where(scale_K > 0, scale_K, 1.0)[:, None]
    return rows.to(torch.float32).clone(memory_format=torch.contiguous_format)


def component_cosines(v_KD: Tensor, previous_KD: Tensor) -> Tensor:
    """Return `[K]` cosines between each component and itself one update earlier (arXiv 2410.07170, section 3.1).

    Rows, of unit norm, are compared by position and with their sign, as PEFT does: components
    that swap places, or turn round, have not converged. (To take v and -v for the same, as they
    are, was tried: a tenth fewer updates, but layers stop so early that PEFT's own test of
    consistency over data orders fails.) Float64, on their device.
    """
    return torch.linalg.vecdot(v_KD.double(), previous_KD.double())


def is_converged(cosines_K: Tensor | None, rank: int, tau: float) -> bool:
    """Tell whether the first `rank` components have cosine >= `tau`.

    A layer needs no more than the components that the current allocation gives it: with
    `rank=0` it has converged. `None` means that there were fewer than two updates.
    """
    if rank == 0:
        return True
    return cosines_K is not None and bool((cosines_K[:rank] >= tau).all())
