"""`solver=incremental`: PEFT's `IncrementalPCA` as EVA uses it, step for step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eva_dist.numerics.components import Components, fix_signs
from eva_dist.numerics.tracker import Moments, Tracker, UpdateCost, add_rows


@dataclass(frozen=True)
class IncrementalState:
    """`v_KD` and `singular_values_K` as of the last update: float32 after the first, float64 after later ones."""

    moments: Moments
    v_KD: Tensor
    singular_values_K: Tensor


@dataclass(frozen=True)
class IncrementalTracker(Tracker[IncrementalState]):
    """Incremental PCA by a randomised SVD of [components kept; new rows; mean correction].

    Source: peft 0.21 `utils/incremental_pca.py` with `lowrank=True`, after scikit-learn and
    Ross et al. 2008; the SVD is `torch.svd_lowrank` (Halko et al. 2011, algorithm 4.4) with
    `q = K + oversampling` (PEFT: 2 K) and `power_steps` iterations (PEFT: 4), reseeded at
    every update. As there, the float64 mean promotes everything from the second update on.

    `q` may exceed rows or features: `svd_lowrank` then spans them all (cutting it would draw
    another random start than PEFT).

    Cost: 2 (power_steps + 1) products of (K + T + 1) x D by q in float64, and as many QRs.
    State: K x D.
    """

    state_type = IncrementalState

    n_components: int
    oversampling: int | None = None
    power_steps: int = 4
    seed: int = 42

    def update(self, state: IncrementalState | None, x_TD: Tensor) -> IncrementalState:
        """Return the state with T more token rows, `n_components <= T`."""
        x_TD = x_TD.to(torch.float32)
        moments, _ = add_rows(state.moments if state else None, x_TD)
        mean_D = x_TD.mean(dim=0, dtype=torch.float64)
        if state is None:
            moments = replace(moments, mean_D=mean_D)
            stack_RD = (x_TD.double() - mean_D).to(torch.float32)
        else:
            # PEFT's own order of operations, to the last bit of the mean: small components hang on it
            before, rows = state.moments, x_TD.shape[0]
            moments = replace(moments, mean_D=(before.mean_D * before.rows + mean_D * rows) / moments.rows)
            batch_mean_D = x_TD.mean(dim=0)
            correction_D = (before.rows * rows / moments.rows) ** 0.5 * (before.mean_D - batch_mean_D)
            kept_KD = (state.singular_values_K[:, None] * state.v_KD).double()
            stack_RD = torch.vstack((kept_KD, (x_TD - batch_mean_D).double(), correction_D[None]))
        v_KD, singular_values_K = self._lowrank_svd(stack_RD)
        return IncrementalState(moments, v_KD, singular_values_K)

    def components(self, state: IncrementalState) -> Components:
        """Return the `n_components` leading components, signs fixed."""
        ratios_K = state.moments.explained_by(state.singular_values_K.double().square())
        return Components(state.v_KD, state.singular_values_K, ratios_K)

    def moments(self, state: IncrementalState) -> Moments:
        """Return the exact moments of all rows seen."""
        return state.moments

    def cost(self, rows: int, in_features: int, row_bytes: int = 4, groups: int = 1, device: str = "cpu") -> UpdateCost:
        """Return what updates cost; groups are updated one after the other. The workspace was measured."""
        k, numbers, stacked = self.n_components, rows * in_features, rows + self.n_components + 1
        q = min(self._lowrank_q, stacked, in_features)
        cast = 0 if row_bytes == 4 else 4 * numbers
        stacking = 12 * numbers + 8 * (stacked + k) * in_features
        factoring = 8 * stacked * in_features + q * (28 * in_features + 24 * stacked)
        turn = 4 * stacked * in_features * q + 4 * (stacked + in_features) * q**2
        return UpdateCost(
            state_bytes=groups * (8 * k * in_features + 8 * in_features + 8 + 8 * q + 8 * k),
            workspace_bytes=cast + max(stacking, factoring),
            float32_operations=0,
            float64_operations=groups * (self.power_steps + 1) * turn,
            moved_bytes=groups * (16 * (self.power_steps + 1) * stacked + 100 * rows) * in_features,
            calls=100 * groups,
        )

    @property
    def _lowrank_q(self) -> int:
        return self.n_components + (self.n_components if self.oversampling is None else self.oversampling)

    def _lowrank_svd(self, stack_RD: Tensor) -> tuple[Tensor, Tensor]:
        k = self.n_components
        devices = [stack_RD.device] if stack_RD.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            _, singular_values_Q, v_DQ = torch.svd_lowrank(stack_RD, q=self._lowrank_q, niter=self.power_steps)
        return fix_signs(v_DQ.mT[:k]), singular_values_Q[:k]
