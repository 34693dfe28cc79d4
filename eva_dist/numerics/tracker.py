"""The contract that every SVD tracker keeps, and the moments that all of them share.

A tracker follows the leading principal components of a stream of token rows. It holds
settings only; its state is a frozen record that `update` replaces, so a state can be
kept, compared, sent or stored without fear that it changes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from eva_dist.numerics.components import Components

StateT = TypeVar("StateT")
T = TypeVar("T")

_FLOAT64_EPS = torch.finfo(torch.float64).eps
_CENTRE_AT_ONCE = {"cpu": 2**17}
_CENTRE_AT_ONCE_ON_ACCELERATORS = 2**26
"""Elements that are float64 at one time while rows are centred: 1 MiB stays in a core's cache; a GPU wants more."""


@dataclass(frozen=True)
class Moments:
    """Exact first moments of all rows seen, in float64.

    Attributes:
        rows: number of token rows; no whole number where rows were given a weight.
        mean_D: their mean.
        total_variance: sum over rows and features of squared deviations from the mean
            (the trace of the scatter matrix; not divided by `rows`), a scalar.
    """

    rows: int | float
    mean_D: Tensor
    total_variance: Tensor

    def explained_by(self, squares_K: Tensor) -> Tensor:
        """Return squared singular values over the total variance, float64; zeros where no row differs from another."""
        ratios_K = squares_K.double() / self.total_variance
        return torch.where(self.total_variance > 0, ratios_K, torch.zeros_like(ratios_K))


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
    if moments is None:
        zero_D = torch.zeros(x_TD.shape[1], dtype=torch.float64, device=x_TD.device)
        moments = Moments(0, zero_D, zero_D.new_zeros(()))
    (merged,), centred_1TD, correction_1D = add_rows_to_all([moments], x_TD[None])
    return merged, Centred(centred_1TD[0], correction_1D[0])


def add_rows_to_all(moments: Sequence[Moments], x_GTD: Tensor) -> tuple[list[Moments], Tensor, Tensor]:
    """Add T rows to each of G groups, all of which have seen as many rows.

    Returns:
        The new moments; the rows centred, `[G, T, D]`, and the correction rows `[G, D]`, in `x_GTD`'s dtype.
    """
    mean_GD, within_G, centred_GTD = once("centre", x_GTD, lambda: _centre_rows(x_GTD))
    before, rows = moments[0].rows, x_GTD.shape[1]
    kept = before / (before + rows)
    shift_GD = together([known.mean_D for known in moments]) - mean_GD
    correction_GD = math.sqrt(kept * rows) * shift_GD
    totals_G = together([known.total_variance for known in moments]) + within_G + _sum_squares(correction_GD)
    means_GD = torch.add(mean_GD, shift_GD, alpha=kept)
    merged = [Moments(before + rows, own_part(means_GD, i), own_part(totals_G, i)) for i in range(len(moments))]
    return merged, centred_GTD, correction_GD.to(x_GTD.dtype)


def together(tensors: Sequence[Tensor]) -> Tensor:
    """Stack along a new first dimension; a single tensor is only viewed."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def own_part(stacked: Tensor, at: int) -> Tensor:
    """Return one group's part, in memory of its own: a group that stops must not keep the others' alive."""
    return stacked[at] if len(stacked) == 1 else stacked[at].clone()


def _centre_rows(x_GTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return means `[G, D]` and summed squared deviations `[G]`, exact in float64, and the rows less their mean.

    Rows are first shifted by a rough mean, which float64 subtracts exactly: so neither a
    mean far from zero nor massive activations cost digits, and one pass does.
    """
    groups, rows, in_features = x_GTD.shape
    rough_GD = (_ones_row(rows, x_GTD.dtype, x_GTD.device) @ x_GTD).to(torch.float64) / rows
    ones_T = _ones_row(rows, torch.float64, x_GTD.device)
    centred_GTD = torch.empty_like(x_GTD)
    left_GD = torch.zeros_like(rough_GD)
    squares_G = torch.zeros_like(rough_GD[:, 0])
    at_once = _CENTRE_AT_ONCE.get(x_GTD.device.type, _CENTRE_AT_ONCE_ON_ACCELERATORS)
    for at in range(0, rows, size := max(1, at_once // (groups * in_features))):
        exact_GtD = x_GTD[:, at : at + size].to(torch.float64, copy=True).sub_(rough_GD[:, None])
        left_GD += ones_T[: exact_GtD.shape[1]] @ exact_GtD
        squares_G += _sum_squares(exact_GtD)
        centred_GTD[:, at : at + size] = exact_GtD
    off_GD = left_GD / rows
    within_G = squares_G - rows * _sum_squares(off_GD)
    rounding_G = rows * _FLOAT64_EPS**2 * _sum_squares(rough_GD)
    return rough_GD + off_GD, torch.where(within_G > rounding_G, within_G, 0.0), centred_GTD


def _sum_squares(x_GN: Tensor) -> Tensor:
    """Return the sum of squares of each group, `[G]`."""
    flat_G1N = x_GN.flatten(1)[:, None]
    return (flat_G1N @ flat_G1N.mT).flatten()


@lru_cache(maxsize=16)
def _ones_row(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(count, dtype=dtype, device=device)


@dataclass(frozen=True)
class UpdateCost:
    """What updates of G groups at once cost, from their shapes alone; a tracker says it of itself.

    Attributes:
        state_bytes: the G states and their components, memory that these share counted once.
        workspace_bytes: peak above the rows given and the states before, the new states included.
        float32_operations, float64_operations: multiplications and additions.
        moved_bytes: read or written by the operations on rows and blocks, one after the other; what bounds
            an update, whose products are narrow.
        calls: operations started, views left out, about; those of G groups that go together count once.
    """

    state_bytes: int
    workspace_bytes: int
    float32_operations: int
    float64_operations: int
    moved_bytes: int
    calls: int


def centring_bytes(numbers: int, device_type: str) -> int:
    """Return the float64 bytes at work while as many numbers are centred: a piece, and the piece after it."""
    at_once = _CENTRE_AT_ONCE.get(device_type, _CENTRE_AT_ONCE_ON_ACCELERATORS)
    return 8 * min(2 * at_once, 2 * numbers)


class Tracker(ABC, Generic[StateT]):
    """Follows the `n_components` leading principal components of rows with D features.

    The state is a frozen record of tensors and integers (`state_type`; see `records.py`). It belongs
    to the caller and is `None` before the first update. Rows may come in any floating dtype; the state
    stays on their device. A tracker is seeded: the same rows in the same order give the same state.
    """

    state_type: ClassVar[type]
    n_components: int

    @abstractmethod
    def update(self, state: StateT | None, x_TD: Tensor) -> StateT:
        """Return the state with T more token rows, `n_components <= T`."""

    def update_many(self, states: Sequence[StateT | None], rows: Sequence[Tensor]) -> list[StateT]:
        """Return the states of several groups, each with its own rows added; one after the other unless overridden."""
        return [self.update(state, x_TD) for state, x_TD in zip(states, rows, strict=True)]

    def lineage(self, in_features: int) -> Hashable:
        """Return what the state depends on beside the rows: trackers that agree in it hold the same bits.

        Their components are then the first ones of whichever hands out most.
        """
        return self

    @abstractmethod
    def components(self, state: StateT) -> Components:
        """Return the `n_components` leading components, signs fixed."""

    @abstractmethod
    def moments(self, state: StateT) -> Moments:
        """Return the exact moments of all rows seen."""

    @abstractmethod
    def cost(self, rows: int, in_features: int, row_bytes: int = 4, groups: int = 1, device: str = "cpu") -> UpdateCost:
        """Return what updates of some groups cost, none of them a group's first.

        Args:
            rows: token rows of each group, enough for the full width of the tracker.
            in_features: of each group.
            row_bytes: of one number in the rows that are given.
            groups: how many are updated together (`update_many`).
            device: type of the device.
        """


_done: ContextVar[dict[Hashable, tuple[Tensor, object]] | None] = ContextVar("done", default=None)


@contextmanager
def same_rows() -> Iterator[None]:
    """While open, what `once` has returned is kept in memory, and must not be changed in place."""
    token = _done.set({})
    try:
        yield
    finally:
        _done.reset(token)


def once(what: Hashable, rows: Tensor, work: Callable[[], T]) -> T:
    """Return what `work` returns; while `same_rows` is open, what it returned for the same memory before."""
    done = _done.get()
    if done is None:
        return work()
    key = (what, rows.data_ptr(), rows.shape, rows.stride(), rows.dtype, rows.device)
    if key not in done:
        done[key] = (rows, work())  # the rows are kept: no others can come to lie where they are
    found: T = done[key][1]  # type: ignore[assignment]
    return found
