"""When a component has stopped turning."""

import torch
from torch import Tensor


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
