"""Synthetic token rows, and the exact answers in float64 that trackers are held against."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def decaying(
    d: int, t: int, steps: int, decay: float = 0.7, drift: float = 0.0, mean: float = 1.0, seed: int = 0
) -> list[Tensor]:
    """Minibatches `[t, d]`, float32: standard deviations `i**-decay` in a random basis, a mean that drifts by step."""
    generator = torch.Generator().manual_seed(seed)
    basis_DD = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    scale_D = torch.arange(1, d + 1, dtype=torch.float64) ** -decay
    mean_D, drift_D = torch.randn(2, d, generator=generator, dtype=torch.float64)
    minibatches = []
    for step in range(steps):
        x_TD = torch.randn(t, d, generator=generator, dtype=torch.float64) * scale_D
        minibatches.append((x_TD @ basis_DD.mT + mean * mean_D + drift * step * drift_D).float())
    return minibatches


def massive(d: int, t: int, steps: int) -> list[Tensor]:
    """As real activations have them: a few features 10^4 times larger than the others, with a mean far from zero."""
    minibatches = decaying(d, t, steps, mean=3.0)
    for x_TD in minibatches:
        x_TD[:, [3, 17]] *= 1e4
    return minibatches


def constant_plus_noise(d: int, t: int, steps: int) -> list[Tensor]:
    """A mean 10^4 times larger than what varies around it."""
    return [x_TD + 1e4 for x_TD in decaying(d, t, steps)]


def low_rank(d: int, t: int, steps: int, rank: int, first: int | None = None) -> list[Tensor]:
    """Rows in a subspace of `rank` directions; `first` rows in the first minibatch."""
    generator = torch.Generator().manual_seed(5)
    factors_RD = torch.randn(rank, d, generator=generator)
    sizes = [first or t] + [t] * (steps - 1)
    return [torch.randn(size, rank, generator=generator) @ factors_RD for size in sizes]


@dataclass(frozen=True)
class Exact:
    """What float64 numpy says of all rows together."""

    rows: int
    mean_D: np.ndarray
    total_variance: float
    scatter_DD: Tensor
    eigenvalues_D: Tensor

    def deficit(self, v_KD: Tensor) -> float:
        """1 - variance captured by these components / variance captured by as many exact ones."""
        v_KD = v_KD.double()
        captured = torch.einsum("kd,de,ke->", v_KD, self.scatter_DD, v_KD)
        return float(1 - captured / self.eigenvalues_D[: len(v_KD)].sum())


def exact(minibatches: list[Tensor]) -> Exact:
    x_TD = torch.cat([x.double() for x in minibatches]).numpy()
    centred_TD = x_TD - x_TD.mean(axis=0)
    scatter_DD = torch.from_numpy(centred_TD.T @ centred_TD)
    eigenvalues_D = torch.linalg.eigvalsh(scatter_DD).flip(0)
    return Exact(len(x_TD), x_TD.mean(axis=0), float((centred_TD**2).sum()), scatter_DD, eigenvalues_D)


def follow(tracker, minibatches, state=None):
    """Return the state after all minibatches."""
    for x_TD in minibatches:
        state = tracker.update(state, x_TD)
    return state
