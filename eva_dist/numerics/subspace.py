"""`solver=subspace`: a warm-started block tracker, the default."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eva_dist.numerics.components import Components, fix_signs
from eva_dist.numerics.tracker import Moments, Tracker, add_rows

_FIRST_POWER_STEPS = 4
_PROBES = 4
"""Random columns beside the block in each power step; see `SubspaceTracker`."""


@dataclass(frozen=True)
class SubspaceState:
    """The tracked block, strongest first: Q = K + oversampling components, more than are handed out."""

    moments: Moments
    v_QD: Tensor
    singular_values_Q: Tensor


@dataclass(frozen=True)
class SubspaceTracker(Tracker[SubspaceState]):
    """Block power iteration on [components kept; new rows; mean correction], from the last basis.

    Where `incremental` draws a random block and turns it five times, this one starts from the
    block that it already has, so one power step does better (Rutishauser 1970 simultaneous
    iteration with Rayleigh-Ritz; the stacking is Ross et al. 2008). `oversampling` components
    beyond K are kept (default K): they take in what is about to enter the leading K, so the
    tracker does not lag its data and pass tau early. Four random probes of the rows join the
    block for the power step: a new direction that is orthogonal to all that was seen is found
    at once, where the block alone would wait for rounding to let it in. The first update has
    no last basis: it starts from a seeded random block in the row space and takes
    `_FIRST_POWER_STEPS`.

    Measured on SmolLM2-135M, 28 layer inputs of 7 blocks, 60 steps of about 500 tokens, K = 32,
    float32; deficit = 1 - captured variance / best possible, against a float64
    eigendecomposition; the right half when 16 components first pass tau = 0.99, against the exact
    leading 16 of all tokens of a stream of 100 steps:

        tracker                              deficit, median   steps   overlap, median / worst
        incremental (PEFT)                            9.7e-3      41       .929 / .814
        2K kept, 1 power step, no probes              1.9e-3      40       .942 / .848
        2K kept, 1 power step, 4 probes (default)     1.4e-3      35.5     .930 / .853
        2K kept, 2 power steps, no probes             1.2e-3      37       .937 / .849
        K+16 kept, 1 power step, no probes            4.4e-3      30       .921 / .844
        K+16 kept, 1 power step, 4 probes             3.4e-3      39       .933 / .850
        K+48 kept, 1 power step, no probes            9.8e-4      43       .944 / .850

    The sample, not the arithmetic, decides the overlap: other orders of the same text move its
    median by .01. Without probes the worst layer fell behind PEFT's in one of five streams.

    Cost: 2 power_steps + 1 products of (Q + T + 1) x D by Q in float32, one Householder QR of
    D x Q a power step, one float64 eigendecomposition Q x Q. State: Q x D.
    """

    n_components: int
    oversampling: int | None = None
    power_steps: int = 1
    seed: int = 42

    def update(self, state: SubspaceState | None, x_TD: Tensor) -> SubspaceState:
        """Return the state with T more token rows, `n_components <= T`."""
        moments, centred = add_rows(state.moments if state else None, x_TD.to(torch.float32))
        if state is None:
            stack_RD = centred.x_TD
            basis_DQ = self._first_basis(stack_RD)
        else:
            kept_QD = state.singular_values_Q[:, None] * state.v_QD
            stack_RD = torch.vstack((kept_QD, centred.x_TD, centred.correction_D[None]))
            basis_DQ = self._with_probes(state.v_QD.mT, stack_RD)
            for _ in range(self.power_steps):
                basis_DQ = _orthonormal(stack_RD.mT @ (stack_RD @ basis_DQ))
        v_QD, singular_values_Q = _rayleigh_ritz(stack_RD, basis_DQ)
        width = self._width(x_TD.shape[1])
        return SubspaceState(moments, v_QD[:width], singular_values_Q[:width])

    def components(self, state: SubspaceState) -> Components:
        """Return the `n_components` leading components, signs fixed."""
        k = self.n_components
        ratios_K = state.moments.explained_by(state.singular_values_Q[:k].double().square())
        return Components(fix_signs(state.v_QD[:k]), state.singular_values_Q[:k], ratios_K)

    def moments(self, state: SubspaceState) -> Moments:
        """Return the exact moments of all rows seen."""
        return state.moments

    def _width(self, in_features: int) -> int:
        extra = self.n_components if self.oversampling is None else self.oversampling
        return min(self.n_components + extra, in_features)

    def _random(self, like_RD: Tensor, width: int) -> Tensor:
        """Draw `[R, width]` normal numbers on the CPU, so that every device starts from the same ones."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(like_RD.shape[0], width, generator=generator, dtype=torch.float32)
        return drawn.to(like_RD.device)

    def _first_basis(self, stack_RD: Tensor) -> Tensor:
        width = min(self._width(stack_RD.shape[1]), stack_RD.shape[0])
        basis_DQ = _orthonormal(stack_RD.mT @ self._random(stack_RD, width))
        for _ in range(_FIRST_POWER_STEPS):
            basis_DQ = _orthonormal(stack_RD.mT @ (stack_RD @ basis_DQ))
        return basis_DQ

    def _with_probes(self, v_DQ: Tensor, stack_RD: Tensor) -> Tensor:
        """Add random mixtures of all rows: a few probes, and more if a short first minibatch left the block narrow."""
        in_features, tracked = v_DQ.shape
        fresh = min(self._width(in_features) + _PROBES, in_features) - tracked
        return torch.hstack((v_DQ, stack_RD.mT @ self._random(stack_RD, fresh)))


def _orthonormal(y_DQ: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns (Householder QR: stable however small the last columns are)."""
    return torch.linalg.qr(y_DQ).Q


def _rayleigh_ritz(stack_RD: Tensor, basis_DQ: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best `v_QD` and singular values of `stack_RD` within the span of `basis_DQ`.

    The small Gram is formed in float64 from the projected rows: its products carry
    float32 rounding of the *projection* only, never of the Gram of raw activations.
    """
    projected_RQ = (stack_RD @ basis_DQ).double()
    eigenvalues_Q, rotation_QQ = torch.linalg.eigh(projected_RQ.mT @ projected_RQ)
    v_QD = (basis_DQ.double() @ rotation_QQ.flip(1)).mT
    return v_QD.to(basis_DQ.dtype).contiguous(), eigenvalues_Q.flip(0).clamp_min(0.0).sqrt().to(basis_DQ.dtype)
