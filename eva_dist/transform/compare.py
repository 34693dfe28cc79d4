"""How two artifacts differ: ranks and the subspaces that their layers span. Pure; numpy alone.

Rows `[rank, in_features]` are compared by the space that they span: order, sign, scale (whitening) and rotation of
the rows do not count. Between two subspaces of dimensions a and b there are min(a, b) principal angles; their mean
squared cosine is the overlap, `||V_a V_b^T||_F^2 / min(a, b)` with orthonormal rows V: 1 where the smaller one lies
in the other, `max(a, b) / in_features` on average for random ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_DEPENDENT = 1e-6
"""A direction this much weaker than the strongest one is rounding: rows are float32."""
_ORTHOGONAL = 1e-5
"""Cosine between rows that count as orthogonal: float32 keeps them to 1e-6."""


@dataclass(frozen=True)
class Angles:
    """Principal angles between two subspaces: `overlap` in 0..1, `largest_deg` in 0..90."""

    overlap: float
    largest_deg: float


@dataclass(frozen=True)
class LayerPair:
    """A layer that both artifacts target. `angles` is None where one of them keeps no component.

    `other_width` says that `in_features` differ, so that nothing but the name is shared.
    """

    name: str
    rank_a: int
    rank_b: int
    angles: Angles | None
    other_width: bool = False


@dataclass(frozen=True)
class ArtifactComparison:
    """Layers of both in the order of A, and those that only one of the artifacts targets."""

    both: tuple[LayerPair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def comparable(self) -> tuple[LayerPair, ...]:
        """Layers whose inputs are equally wide."""
        return tuple(pair for pair in self.both if not pair.other_width)

    @property
    def equal_ranks(self) -> int:
        """In how many of the comparable layers the ranks are equal."""
        return sum(pair.rank_a == pair.rank_b for pair in self.comparable)

    @property
    def overlap(self) -> float | None:
        """Mean overlap of the layers in which both keep components; None if there is none."""
        found = [pair.angles.overlap for pair in self.both if pair.angles is not None]
        return float(np.mean(found)) if found else None

    @property
    def largest_deg(self) -> float | None:
        """Largest angle of all layers."""
        return max((pair.angles.largest_deg for pair in self.both if pair.angles is not None), default=None)


def compare_layers(rows_a: Mapping[str, Array], rows_b: Mapping[str, Array]) -> ArtifactComparison:
    """Compare two artifacts by their layers' rows `[rank, in_features]`, in the order of A.

    Raises:
        ValueError: rows hold NaN or infinity; the message names the layer.
    """
    both = []
    for name in (name for name in rows_a if name in rows_b):
        (rank_a, width_a), (rank_b, width_b) = rows_a[name].shape, rows_b[name].shape
        angles = None
        if width_a == width_b and rank_a and rank_b:
            try:
                angles = principal_angles(orthonormal_rows(rows_a[name]), orthonormal_rows(rows_b[name]))
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}") from error
        both.append(LayerPair(name, rank_a, rank_b, angles, width_a != width_b))
    return ArtifactComparison(
        tuple(both),
        tuple(name for name in rows_a if name not in rows_b),
        tuple(name for name in rows_b if name not in rows_a),
    )


def principal_angles(basis_a: Array, basis_b: Array) -> Angles | None:
    """Return the angles between two subspaces, given as orthonormal rows of one width; None if one is empty.

    Large angles come from their cosines, small ones from their sines: a cosine near 1 says nothing of its angle
    (Björck and Golub 1973, section 3).
    """
    if not (len(basis_a) and len(basis_b)):
        return None
    small, large = sorted((basis_a, basis_b), key=len)
    shared = small @ large.T
    cosines = np.minimum(np.linalg.svd(shared, compute_uv=False), 1.0)
    sines = np.minimum(np.linalg.svd(small - shared @ large, compute_uv=False), 1.0)
    largest = np.arccos(cosines.min()) if cosines.min() ** 2 < 0.5 else np.arcsin(sines.max())
    return Angles(float(np.mean(cosines**2)), float(np.degrees(largest)))


def subspace_overlap(bases: Sequence[Array]) -> Array:
    """Return `[N, N]` overlaps of N subspaces, given as orthonormal rows `[rank, in_features]`, rank > 0."""
    ranks = [len(basis) for basis in bases]
    joined = np.concatenate(bases)
    squares = (joined @ joined.T) ** 2
    starts = np.cumsum([0, *ranks[:-1]])
    shared = np.add.reduceat(np.add.reduceat(squares, starts, axis=0), starts, axis=1)
    return np.minimum(shared / np.minimum.outer(ranks, ranks), 1.0)  # rounding alone brings it above


def orthonormal_rows(rows_KD: Array) -> Array:
    """Return float64 orthonormal rows that span these, which whitening may have scaled.

    Rows that depend on others, zero ones among them, add none.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    rows_KD = rows_KD.astype(np.float64)
    if not np.isfinite(rows_KD).all():
        raise ValueError("its rows hold NaN or infinity")
    norms_K1 = np.linalg.norm(rows_KD, axis=1, keepdims=True)
    normed_KD = rows_KD[norms_K1[:, 0] > 0] / norms_K1[norms_K1 > 0][:, None]
    if np.abs(normed_KD @ normed_KD.T - np.eye(len(normed_KD))).max(initial=0.0) < _ORTHOGONAL:
        return np.linalg.qr(normed_KD.T)[0].T  # what EVA stores is orthogonal but for rounding
    _, values, rows = np.linalg.svd(normed_KD, full_matrices=False)
    return rows[values > _DEPENDENT * values.max()]
