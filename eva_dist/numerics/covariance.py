"""`solver=covariance`: the exact answer, from the accumulated scatter matrix; states add up, and can be kept.

Methods that need the uncentred second moment of a layer's inputs (CorDA, GPTQ-like ones) have it in a state:
sum over rows of x x^T = `scatter_DD + rows * outer(mean_D, mean_D)`.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eva_dist.numerics.components import Components, fix_signs
from eva_dist.numerics.tracker import Moments, Tracker, UpdateCost, add_rows, centring_bytes, once


@dataclass(frozen=True)
class CovarianceState:
    """Float64 sums: `scatter_DD` is the sum of outer products of deviations from the running mean."""

    moments: Moments
    scatter_DD: Tensor


@dataclass(frozen=True)
class CovarianceTracker(Tracker[CovarianceState]):
    """Exact principal components: float64 scatter matrix, full eigendecomposition when asked.

    Source: Chan, Golub, LeVeque 1983 (pairwise update of mean and scatter). States of
    disjoint rows add up, in any order (`merge`): across workers, runs and data sets.

    Cost: T D^2 multiply-adds an update and about 9 D^3 for each call of `components`, float64.
    State: D x D. Exact to float64 rounding, small eigenvalues included.
    """

    state_type = CovarianceState

    n_components: int

    def update(self, state: CovarianceState | None, x_TD: Tensor) -> CovarianceState:
        """Return the state with T more token rows."""
        known = state.moments if state else None
        moments, centred = add_rows(known, once("double", x_TD, lambda: x_TD.to(torch.float64)))
        added_DD = centred.x_TD.mT @ centred.x_TD + torch.outer(centred.correction_D, centred.correction_D)
        return CovarianceState(moments, added_DD if state is None else state.scatter_DD + added_DD)

    def components(self, state: CovarianceState) -> Components:
        """Return the `n_components` leading components, signs fixed, in float64."""
        eigenvalues_D, vectors_DD = torch.linalg.eigh(state.scatter_DD)
        leading_K = eigenvalues_D.flip(0)[: self.n_components].clamp_min(0.0)
        v_KD = vectors_DD.flip(1)[:, : self.n_components].mT.contiguous()
        return Components(fix_signs(v_KD), leading_K.sqrt(), state.moments.explained_by(leading_K))

    def lineage(self, in_features: int) -> Hashable:
        """Return what the state depends on: nothing but the rows, however many components are handed out."""
        return CovarianceTracker

    def moments(self, state: CovarianceState) -> Moments:
        """Return the exact moments of all rows seen."""
        return state.moments

    def cost(self, rows: int, in_features: int, row_bytes: int = 4, groups: int = 1, device: str = "cpu") -> UpdateCost:
        """Return what updates cost, components included; groups are updated one after the other."""
        k, numbers, square = self.n_components, rows * in_features, in_features**2
        centring = 16 * numbers + centring_bytes(numbers, device)
        return UpdateCost(
            state_bytes=groups * (8 * square + 8 * k * in_features + 8 * in_features + 8 + 16 * k),
            workspace_bytes=max(centring, 8 * numbers + 24 * square, 32 * square + 8 * k * in_features),
            float32_operations=0,
            float64_operations=groups * (2 * rows * square + 9 * in_features * square),
            moved_bytes=groups * (90 * numbers + 100 * square),
            calls=70 * groups,
        )


def scaled(state: CovarianceState, weight: float) -> CovarianceState:
    """Return the state as if each of its rows had counted `weight` times; the mean stays."""
    if weight == 1.0:
        return state
    known = state.moments
    moments = Moments(known.rows * weight, known.mean_D, known.total_variance * weight)
    return CovarianceState(moments, state.scatter_DD * weight)


def merge(a: CovarianceState, b: CovarianceState) -> CovarianceState:
    """Return the state of both states' rows together, exact."""
    rows = a.moments.rows + b.moments.rows
    shift_D = a.moments.mean_D - b.moments.mean_D
    weight = a.moments.rows * b.moments.rows / rows
    moments = Moments(
        rows=rows,
        mean_D=(a.moments.mean_D * a.moments.rows + b.moments.mean_D * b.moments.rows) / rows,
        total_variance=a.moments.total_variance + b.moments.total_variance + weight * shift_D.square().sum(),
    )
    return CovarianceState(moments, (a.scatter_DD + b.scatter_DD).addr_(shift_D, shift_D, alpha=weight))


def to_packed(state: CovarianceState) -> dict[str, Tensor]:
    """Return a state as float64 tensors on the CPU, each in memory of its own.

    `rows` and `total_variance` are scalars, `mean` is `[D]`. `scatter` is the lower triangle, `[D * (D + 1) / 2]`: row
    0 up to its diagonal, then row 1, and so on. It is the triangle that `components` reads, so those of a state that
    was packed are the same to the bit.
    """
    scatter_DD = state.scatter_DD.detach().to("cpu")
    return {
        "rows": torch.tensor(float(state.moments.rows), dtype=torch.float64),
        "mean": state.moments.mean_D.detach().to("cpu", copy=True),
        "total_variance": state.moments.total_variance.detach().to("cpu", copy=True),
        "scatter": torch.cat([row_D[: at + 1] for at, row_D in enumerate(scatter_DD)]),
    }


def from_packed(packed: Mapping[str, Tensor]) -> CovarianceState:
    """Return the state of which `to_packed` made these; its scatter is symmetric to the bit."""
    in_features = len(packed["mean"])
    scatter_DD = torch.empty(in_features, in_features, dtype=torch.float64)
    for at, row in enumerate(packed["scatter"].split(list(range(1, in_features + 1)))):
        scatter_DD[at, : at + 1] = row
        scatter_DD[:at, at] = row[:at]
    rows = float(packed["rows"])
    moments = Moments(int(rows) if rows.is_integer() else rows, packed["mean"], packed["total_variance"])
    return CovarianceState(moments, scatter_DD)


def packed_numbers(in_features: int) -> int:
    """Return how many float64 numbers a packed state has."""
    return in_features * (in_features + 1) // 2 + in_features + 2
