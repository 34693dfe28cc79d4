"""`solver=subspace`: a warm-started block tracker, the default.

Shapes: G input groups at once, T new rows, D features, K components handed out, Q >= K
components kept, P probes, W = Q + P width of the block, R = T + 1 projected rows.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from eva_dist.numerics.components import Components, fix_signs
from eva_dist.numerics.tracker import (
    Moments,
    Tracker,
    UpdateCost,
    add_rows,
    add_rows_to_all,
    centring_bytes,
    once,
    own_part,
    together,
)

_FIRST_POWER_STEPS = 4
_PROBES = 4
"""Random columns beside the block; see `SubspaceTracker`."""
_LEAST_WIDTH = 32
"""Of the block, probes included: a few components need company no less than many do."""
_CHOLESKY_SHIFT = 1e-15
"""Of the trace, added to the float64 Gram: a direction without variance must not break its factorisation."""
_WIDEST_SPAN = 3e4
"""Largest over smallest singular value kept: beyond, a float64 Gram's vectors are not orthonormal to 1e-6."""
_WORST_ROUNDING = 1e-2 / torch.finfo(torch.float32).eps
"""Float32 rounding, amplified by dependence within the block, stays below a hundredth of the weakest vector kept."""
_LEAST_FRESH = 1e-3
"""Of a probe's norm must lie outside the block, else float32 has left nothing of it but rounding."""
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class SubspaceState:
    """The tracked block, strongest first: Q = K + oversampling components, more than are handed out."""

    moments: Moments
    v_QD: Tensor
    singular_values_Q: Tensor


@dataclass(frozen=True)
class SubspaceTracker(Tracker[SubspaceState]):
    """Block power iteration on S = [components kept; mean correction; new rows], from the last basis.

    Where `incremental` draws a random block and turns it five times, this one starts from the
    block V that it already has, so one power step does better (Rutishauser 1970; the stacking
    is Ross et al. 2008). `oversampling` components beyond K are kept: they take in what is
    about to enter the leading K, so the tracker does not lag its data and pass tau early. Four
    random mixtures of the rows, made orthogonal to V, join the block: a new direction that is
    orthogonal to all that was seen is found at once, where V alone would wait for rounding to
    let it in. With them the block is by default as wide as the next power of two from 2K on, at
    least 32: so trackers of nearby K hold the same state, and points of a sweep over rho share it.

    One update reads the centred rows twice (Halko, Martinsson, Tropp 2011, algorithm 5.1, after
    a range finder that is warm): Z = S V and Y = S^T Z in float32; then, in float64, an
    orthonormal range of Z by Cholesky-QR, L L^T = Z^T Z; B = L^-1 Y^T, the rows of S in
    that range; and V from the eigenvectors of B B^T. Both Gram matrices are W x W, of
    *projected* rows: a float32 Gram of raw activations is never formed. Where the kept
    spectrum spans too much for a float64 Gram (or the first block is to be made, or
    `power_steps` asks for more), a step takes Householder QR and Rayleigh-Ritz instead. On
    SmolLM2-135M no input comes near: the largest singular value kept is at most 171 times the
    smallest, and 30000 are allowed.

    Groups whose rows and states agree in shape are updated in one sequence of batched
    kernels, synchronised once for all of them and not once a layer (`update_many`).

    What was tried, on SmolLM2-135M, 24 layer inputs of 6 blocks, about 520 tokens an update, K = 32,
    2 cores: milliseconds an update; deficit after 60 updates = 1 - captured variance / best
    possible, median, against float64; then where 16 components first pass tau = 0.99, and the
    overlap there with the exact leading 16 of all tokens of 100 steps:

        tracker                                        ms   deficit   steps   overlap, median / worst
        incremental (PEFT's own class)               17.4    6.6e-3    32.0      .955 / .863
        Householder QR, Rayleigh-Ritz, 2K kept        5.3    7.8e-4    31.5      .962 / .878
        Cholesky-QR, 2K kept                          3.3    7.9e-4    31.0      .954 / .878
        the same without probes                       3.1    9.7e-4    32.0      .957 / .892
        the same, K + 16 kept                         3.0    2.0e-3    31.0      .956 / .876
        Cholesky-QR on row-major blocks, K + 28 kept  2.4    9.5e-4    32.0      .960 / .879
        the same, K + 12 kept                         2.0    2.5e-3    32.0      .952 / .877
        4K kept, 3 power steps (nearly exact)        15.9    4.3e-5    31.5      .960 / .899

    The last but two is the default here (2.6 ms as it now stands, checks included);
    `jobs/benchmark.py` times it, and what its options reach, against PEFT on any model. The
    sample, not the arithmetic, decides the overlap: see the last line. Batching several groups
    on a CPU brought nothing (2.1 to 2.5 ms), a pool of two threads a sixth; the floor of one
    update is two products of T x D by W, and three passes over the rows for the exact moments.

    Cost: 4 T D W float32 operations; 6 D W^2 + 2 T W^2 + 20 W^3 in float64; the exact moments,
    5 T D in float64. State: Q x D float32 and D float64.
    """

    state_type = SubspaceState

    n_components: int
    oversampling: int | None = None
    power_steps: int = 1
    seed: int = 42

    def update(self, state: SubspaceState | None, x_TD: Tensor) -> SubspaceState:
        """Return the state with T more token rows, `n_components <= T`."""
        return self.update_many([state], [x_TD])[0]

    def update_many(self, states: Sequence[SubspaceState | None], rows: Sequence[Tensor]) -> list[SubspaceState]:
        """Return the states of several groups, each with its rows added; equal shapes and row counts go together."""
        updated: dict[int, SubspaceState] = {}
        alike: dict[object, dict[int, SubspaceState]] = defaultdict(dict)
        for i, (state, x_TD) in enumerate(zip(states, rows, strict=True)):
            if state is None or self.power_steps > 1 or len(state.v_QD) < self._block_width(x_TD.shape[1]):
                updated[i] = self._update_carefully(state, x_TD)
            else:
                alike[x_TD.shape, x_TD.dtype, x_TD.device, state.moments.rows][i] = state
        for members in alike.values():
            updated |= self._update_warm(members, [rows[i] for i in members])
        return [updated[i] for i in range(len(rows))]

    def components(self, state: SubspaceState) -> Components:
        """Return the `n_components` leading components, signs fixed."""
        k = self.n_components
        ratios_K = state.moments.explained_by(state.singular_values_Q[:k].double().square())
        return Components(state.v_QD[:k], state.singular_values_Q[:k], ratios_K)

    def lineage(self, in_features: int) -> Hashable:
        """Return what the state depends on: the width of the block, to which few components are widened."""
        return SubspaceTracker, self._block_width(in_features), self.power_steps, self.seed

    def moments(self, state: SubspaceState) -> Moments:
        """Return the exact moments of all rows seen."""
        return state.moments

    def cost(self, rows: int, in_features: int, row_bytes: int = 4, groups: int = 1, device: str = "cpu") -> UpdateCost:
        """Return what updates cost; the workspace was measured (either the centring or the range finder peaks)."""
        kept = self._block_width(in_features)
        width = min(kept + _PROBES, in_features)
        numbers, block = rows * in_features, width * in_features
        cast = 0 if row_bytes == 4 else 4 * numbers
        centring = groups * (cast + 4 * numbers) + centring_bytes(groups * numbers, device)
        finding = groups * (4 * numbers + 12 * rows * width + 28 * block + 32 * width**2)
        return UpdateCost(
            state_bytes=groups * (4 * kept * in_features + 8 * in_features + 4 * kept + 8 + 8 * self.n_components),
            workspace_bytes=max(centring, finding),
            float32_operations=groups * 4 * rows * block,
            float64_operations=groups * (6 * block * width + 2 * rows * width**2 + 20 * width**3 + 5 * numbers),
            moved_bytes=groups * ((72 + row_bytes) * numbers + 180 * block),
            calls=120,
        )

    def _update_warm(self, states: Mapping[int, SubspaceState], rows: Sequence[Tensor]) -> dict[int, SubspaceState]:
        """Update groups of equal shapes together; one whose spectrum spans too much is updated again, carefully."""
        before = [state.moments for state in states.values()]
        moments, x_GTD, correction_GD = add_rows_to_all(before, together(rows).to(torch.float32))
        v_GQD = together([state.v_QD for state in states.values()])
        singular_values_GQ = together([state.singular_values_Q for state in states.values()])
        probes_GPD, fresh_G = self._probe_rows(x_GTD, v_GQD)
        found = _range_and_ritz(x_GTD, correction_GD, singular_values_GQ, v_GQD, probes_GPD)
        # groups that float32 products cannot serve are found after the fact, for nearly all can be
        v_GQD, singular_values_GQ, well_G = found
        well_G = well_G & fresh_G
        fine = [True] * len(rows) if bool(well_G.all()) else well_G.tolist()
        return {
            i: SubspaceState(moments[at], own_part(v_GQD, at), own_part(singular_values_GQ, at))
            if fine[at]
            else self._update_carefully(states[i], rows[at])
            for at, i in enumerate(states)
        }

    def _probe_rows(self, x_GTD: Tensor, v_GQD: Tensor) -> tuple[Tensor, Tensor]:
        """Return random mixtures of the rows, orthogonal to the block, and where they are more than rounding."""
        width = min(_PROBES, x_GTD.shape[2] - v_GQD.shape[1])
        random_PT = _random_block(width, x_GTD.shape[1], self.seed, x_GTD.device)
        mixed_GPD = once(("mix", width, self.seed), x_GTD, lambda: random_PT @ x_GTD)
        outside_GPD = torch.baddbmm(mixed_GPD, mixed_GPD @ v_GQD.mT, v_GQD, alpha=-1)
        norms_GP1 = torch.linalg.vector_norm(outside_GPD, dim=2, keepdim=True)
        # a probe that lies in the block but for rounding would be normed to noise
        enough_GP = norms_GP1[..., 0] > _LEAST_FRESH * torch.linalg.vector_norm(mixed_GPD, dim=2)
        return outside_GPD / norms_GP1, enough_GP.all(1)

    def _update_carefully(self, state: SubspaceState | None, x_TD: Tensor) -> SubspaceState:
        """Update one group by Householder QR and Rayleigh-Ritz, from the last basis or from a random one."""
        moments, centred = add_rows(state.moments if state else None, x_TD.to(torch.float32))
        if state is None:
            stack_RD = centred.x_TD
            basis_DW = self._first_basis(stack_RD)
        else:
            # what is kept of all earlier rows, as rows again: their scatter is the block's
            kept_QD = state.singular_values_Q[:, None] * state.v_QD
            stack_RD = torch.vstack((kept_QD, centred.x_TD, centred.correction_D[None]))
            basis_DW = self._with_probes(state.v_QD.mT, stack_RD)
            for _ in range(self.power_steps):
                basis_DW = _orthonormal_columns(stack_RD.mT @ (stack_RD @ basis_DW))
        v_WD, singular_values_W = _rayleigh_ritz(stack_RD, basis_DW)
        width = self._block_width(x_TD.shape[1])
        return SubspaceState(moments, fix_signs(v_WD[:width]), singular_values_W[:width].clone())

    def _block_width(self, in_features: int) -> int:
        usual = max(1 << (2 * self.n_components - 1).bit_length(), _LEAST_WIDTH) - _PROBES
        kept = usual if self.oversampling is None else self.n_components + self.oversampling
        return min(kept, in_features)

    def _first_basis(self, stack_RD: Tensor) -> Tensor:
        rows, in_features = stack_RD.shape
        width = min(self._block_width(in_features), rows)
        basis_DW = _orthonormal_columns((_random_block(width, rows, self.seed, stack_RD.device) @ stack_RD).mT)
        for _ in range(_FIRST_POWER_STEPS):
            basis_DW = _orthonormal_columns(stack_RD.mT @ (stack_RD @ basis_DW))
        return basis_DW

    def _with_probes(self, v_DQ: Tensor, stack_RD: Tensor) -> Tensor:
        """Add random mixtures of all rows: a few probes, and more if a short first minibatch left the block narrow."""
        in_features, tracked = v_DQ.shape
        fresh = min(self._block_width(in_features) + _PROBES, in_features) - tracked
        return torch.hstack((v_DQ, (_random_block(fresh, len(stack_RD), self.seed, stack_RD.device) @ stack_RD).mT))


@lru_cache(maxsize=16)
def _random_block(height: int, width: int, seed: int, device: torch.device) -> Tensor:
    """Draw `[height, width]` normal numbers on the CPU, so that every device starts from the same ones."""
    return torch.randn(height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(device)


def _range_and_ritz(
    x_GTD: Tensor, correction_GD: Tensor, singular_values_GQ: Tensor, v_GQD: Tensor, probes_GPD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return new `v_GQD` and singular values of S = [singular values * v; correction; x], and where to trust them.

    They are the best within the range of S block^T, block = [v; probes]. S is never stacked: as v
    is orthonormal and the probes are orthogonal to it, the part of v is diagonal. `well_G` is False where
    the kept spectrum spans too much for a float64 Gram matrix, or the block is so near to
    dependent that rounding of its float32 products would show in the weakest vector kept.
    """
    width = v_GQD.shape[1]
    block_GWD = torch.cat((v_GQD, probes_GPD), 1)
    squares_GQ = singular_values_GQ.square()
    # the only two products with all rows: T x D x W each, float32
    new_GTW = x_GTD @ block_GWD.mT
    correction_GW1 = block_GWD @ correction_GD[..., None]
    image_GWD = correction_GW1 * correction_GD[:, None]
    # the kept part of S is diag(singular values) v, so its image is known without a product
    image_GWD[:, :width].addcmul_(v_GQD, squares_GQ[..., None])
    image_GWD.baddbmm_(new_GTW.mT, x_GTD)
    # float64 from here on: a Gram matrix squares the span of the spectrum, which float32 would not hold
    projected_GRW = torch.cat((new_GTW, correction_GW1.mT), 1).double()
    gram_GWW = projected_GRW.mT @ projected_GRW
    diagonal_GW = gram_GWW.diagonal(dim1=1, dim2=2)
    diagonal_GW[:, :width] += squares_GQ
    # the least shift at which Cholesky goes through although probes may nearly depend on the block
    diagonal_GW += _CHOLESKY_SHIFT * diagonal_GW.sum(1, keepdim=True)
    factor_GWW, failed_G = torch.linalg.cholesky_ex(gram_GWW)
    # rows of Cholesky QR: an orthonormal range in exact arithmetic, whose Gram says how far S stretches it
    rows_GWD = torch.linalg.solve_triangular(factor_GWW, image_GWD.double(), upper=False)
    spread_GWW = torch.nan_to_num(rows_GWD @ rows_GWD.mT)  # eigh would refuse what Cholesky could not factor
    eigenvalues_GW, rotation_GWW = torch.linalg.eigh(spread_GWW)
    # eigh sorts upwards; components are strongest first
    singular_values_GQ = eigenvalues_GW.flip(1)[:, :width].clamp_min(_TINY).sqrt()
    weights_GQW = rotation_GWW.mT.flip(1)[:, :width] / singular_values_GQ[..., None]
    v_GQD = fix_signs((weights_GQW @ rows_GWD).to(x_GTD.dtype))
    # how much of a row Cholesky had to take away to make it independent: its rounding grows by that factor
    dependence_G = (diagonal_GW.sqrt() / factor_GWW.diagonal(dim1=1, dim2=2)).amax(1)
    span_G = singular_values_GQ[:, 0] / singular_values_GQ[:, -1]
    well_G = (failed_G == 0) & (span_G < _WIDEST_SPAN) & (span_G * dependence_G < _WORST_ROUNDING)
    return v_GQD, singular_values_GQ.to(x_GTD.dtype), well_G


def _orthonormal_columns(y_DW: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns (Householder QR: stable however small the last columns are).

    Each column is normed once more in float64: QR's own 1e-7, squared at every update, would
    let the explained variance creep above 1.
    """
    basis_DW = torch.linalg.qr(y_DW).Q
    return (basis_DW / torch.linalg.vector_norm(basis_DW, dim=0, dtype=torch.float64)).to(y_DW.dtype)


def _rayleigh_ritz(stack_RD: Tensor, basis_DW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best `v_WD` and singular values of `stack_RD` within the span of `basis_DW`.

    The small Gram is formed in float64 from the projected rows: its products carry
    float32 rounding of the *projection* only, never of the Gram of raw activations.
    """
    projected_RW = (stack_RD @ basis_DW).double()
    eigenvalues_W, rotation_WW = torch.linalg.eigh(projected_RW.mT @ projected_RW)
    v_WD = (basis_DW.double() @ rotation_WW.flip(1)).mT
    return v_WD.to(basis_DW.dtype).contiguous(), eigenvalues_W.flip(0).clamp_min(0.0).sqrt().to(basis_DW.dtype)
