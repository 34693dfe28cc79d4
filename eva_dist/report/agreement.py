"""How far two artifacts agree: the subspaces that their kept components span, and their ranks."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from safetensors import safe_open

from eva_dist.artifact.file_names import STATE_DICT_FILE
from eva_dist.report.point import StoredArtifact
from eva_dist.transform.compare import Array, orthonormal_rows, subspace_overlap


@dataclass(frozen=True)
class Agreement:
    """Agreement of every pair of N artifacts; NaN where two have nothing to compare.

    Attributes:
        overlap_NN: mean over the layers in which both keep components of
            `||V_a V_b^T||_F^2 / min(rank_a, rank_b)`, 0..1, with V the orthonormalised kept rows.
        equal_ranks_NN: share of the layers that both target whose ranks are equal, 0..1.
    """

    overlap_NN: Array
    equal_ranks_NN: Array

    def of(self, a: int, b: int) -> tuple[float | None, float | None]:
        """Return overlap and share of equal ranks of two artifacts by their places; None for NaN."""
        return none_if_nan(float(self.overlap_NN[a, b])), none_if_nan(float(self.equal_ranks_NN[a, b]))


def agreement(artifacts: Sequence[StoredArtifact]) -> Agreement:
    """Compare every pair, one layer at a time: a layer's rows are all that is in memory."""
    count = len(artifacts)
    overlaps, compared = np.zeros((count, count)), np.zeros((count, count))
    equal, together = np.zeros((count, count)), np.zeros((count, count))
    ranks = [artifact.ranks for artifact in artifacts]
    with ExitStack() as opened:
        rows = [opened.enter_context(safe_open(artifact.folder / STATE_DICT_FILE, "np")) for artifact in artifacts]
        for name in dict.fromkeys(name for of_one in ranks for name in of_one):
            holders = [i for i, of_one in enumerate(ranks) if name in of_one]
            rank_H = np.array([ranks[i][name] for i in holders])
            both = np.ix_(holders, holders)
            equal[both] += rank_H[:, None] == rank_H
            together[both] += 1
            bases = {i: orthonormal_rows(rows[i].get_tensor(name)) for i in holders if ranks[i][name]}
            for width in {basis.shape[1] for basis in bases.values()}:  # points of two models may name a layer alike
                alike = [i for i, basis in bases.items() if basis.shape[1] == width]
                both = np.ix_(alike, alike)
                overlaps[both] += subspace_overlap([bases[i] for i in alike])
                compared[both] += 1
    return Agreement(_divide_counts(overlaps, compared), _divide_counts(equal, together))


def none_if_nan(value: float) -> float | None:
    """Return what JSON can hold."""
    return None if math.isnan(value) else value


def _divide_counts(total: Array, count: Array) -> Array:
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
