"""The contract that every SVD tracker keeps, and the moments that all of them share.

A tracker follows the leading principal components of a stream of token rows. It holds
settings only; its state is a frozen record that `update` replaces, so a state can be
kept, compared, sent or stored without fear that it changes.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from eva_dist.numerics.components import Components

StateT = TypeVar("StateT")


@dataclass(frozen=True)
class Moments:
    """Exact first moments of all rows seen, in float64.

    Attributes:
        rows: number of token rows.
        mean_D: their mean.
        total_variance: sum over rows and features of squared deviations from the mean
            (the trace of the scatter matrix; not divided by `rows`), a scalar.
    """

    rows: int
    mean_D: Tensor
    total_variance: Tensor

    def explained_by(self, squares_K: Tensor) -> Tensor:
        """Return squared singular values over the total variance, float64; zeros where no row differs from another."""
        return squares_K.double() / self.total_variance.clamp_min(torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class Centred:
    """One minibatch centred on its own mean, and the row that accounts for the shift of the mean.

    Appending `correction_D` to the stacked rows keeps the scatter exact (Ross et al. 2008,
    "Incremental learning for robust visual tracking", eq. 3; scikit-learn's IncrementalPCA).
    It is zero at the first update.
    """

    x_TD: Tensor
    correction_D: Tensor


def add_rows(moments: Moments | None, x_TD: Tensor) -> tuple[Moments, Centred]:
    """Return the moments with the rows of `x_TD` added, and the rows centred, in `x_TD`'s dtype."""
    rows = x_TD.shape[0]
    mean_D = x_TD.mean(dim=0, dtype=torch.float64)
    exact_TD = x_TD.to(torch.float64) - mean_D  # a float32 mean of massive activations would lose 1e-6 of the variance
    centred_TD, within = exact_TD.to(x_TD.dtype), exact_TD.square().sum()
    if moments is None:
        return Moments(rows, mean_D, within), Centred(centred_TD, torch.zeros_like(x_TD[0]))
    total = moments.rows + rows
    shift_D = moments.mean_D - mean_D
    weight = moments.rows * rows / total
    merged = Moments(
        rows=total,
        mean_D=(moments.mean_D * moments.rows + mean_D * rows) / total,
        total_variance=moments.total_variance + within + weight * shift_D.square().sum(),
    )
    return merged, Centred(centred_TD, (math.sqrt(weight) * shift_D).to(x_TD.dtype))


class Tracker(ABC, Generic[StateT]):
    """Follows the `n_components` leading principal components of rows with D features.

    The state belongs to the caller and is `None` before the first update. Rows may come in
    any floating dtype; the state stays on their device. A tracker is seeded: the same rows in
    the same order give the same state.
    """

    n_components: int

    @abstractmethod
    def update(self, state: StateT | None, x_TD: Tensor) -> StateT:
        """Return the state with T more token rows, `n_components <= T`."""

    @abstractmethod
    def components(self, state: StateT) -> Components:
        """Return the `n_components` leading components, signs fixed."""

    @abstractmethod
    def moments(self, state: StateT) -> Moments:
        """Return the exact moments of all rows seen."""
