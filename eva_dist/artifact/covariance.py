"""`covariance.safetensors`: what `solver=covariance` has summed up, one input group after the other.

For each input group that was updated, by its tap, four float64 tensors (`numerics/covariance.py`, `to_packed`):

    <tap>.rows            []                   token rows; no whole number where they were given a weight
    <tap>.mean            [D]                  their mean
    <tap>.total_variance  []                   sum of squared deviations from it
    <tap>.scatter         [D * (D + 1) / 2]    lower triangle, by rows, of the sum of outer products of deviations

About 4 D^2 bytes a group. Groups, and these four, lie in this order, so the same sums give the same bytes. The file
is written and read a group at a time: whole, it may be larger than the memory of a machine.

It adds up (`eva-dist merge`), and holds what methods need that look at the inputs' uncentred covariance (CorDA):
the sum over rows of x x^T is `scatter + rows * outer(mean, mean)`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eva_dist.errors import IntegrityError
from eva_dist.numerics.covariance import CovarianceState, from_packed
from eva_dist.plan import InputGroup
from eva_dist.store.artifact_reader import REMEDY


def write_covariance(
    path: Path, groups: Iterable[InputGroup], fetch: Callable[[InputGroup], Mapping[str, Tensor]]
) -> None:
    """Write the file, with one group in memory at a time.

    Args:
        path: the file; it is replaced.
        groups: those that were updated, in order.
        fetch: called once for each, in that order: its packed state.

    Raises:
        OSError: the file cannot be written.
        Exception: what `fetch` raises.
    """
    groups = tuple(groups)
    with path.open("wb") as file:
        file.write(_header_bytes(groups))
        for group in groups:
            packed = fetch(group)
            for name, shape in _tensor_shapes(group.in_features).items():
                tensor = packed[name]
                assert (tensor.dtype, tensor.shape) == (torch.float64, shape), (group.tap, name)
                file.write(tensor.contiguous().numpy().astype("<f8", copy=False).data)


@dataclass(frozen=True)
class CovarianceFile:
    """An open file; holds none of its tensors."""

    path: Path
    _tensors: Any
    _names: frozenset[str]

    def __contains__(self, group: InputGroup) -> bool:
        """Whether the group was updated."""
        return f"{group.tap}.rows" in self._names

    def state(self, group: InputGroup) -> CovarianceState:
        """Return what was summed up of a group.

        Raises:
            IntegrityError: it is not there in the shape that its input has, or holds what no sum can be.
        """
        try:
            packed = {
                name: self._tensors.get_tensor(f"{group.tap}.{name}") for name in _tensor_shapes(group.in_features)
            }
        except SafetensorError as error:
            raise IntegrityError(f"{self.path} lacks {group.tap} ({error}); {REMEDY}") from error
        for name, shape in _tensor_shapes(group.in_features).items():
            tensor = packed[name]
            if (tensor.dtype, tensor.shape) != (torch.float64, shape) or not bool(tensor.isfinite().all()):
                raise IntegrityError(
                    f"{self.path}: {group.tap}.{name} must be finite float64 numbers {list(shape)}, is {tensor.dtype} "
                    f"{list(tensor.shape)}; {REMEDY}"
                )
        if not float(packed["rows"]) > 0 or float(packed["total_variance"]) < 0:
            raise IntegrityError(f"{self.path}: {group.tap} has no rows, or a variance below 0; {REMEDY}")
        return from_packed(packed)


@contextmanager
def open_covariance(path: Path) -> Iterator[CovarianceFile]:
    """Open the file of an artifact that `restore_artifact` has verified.

    Raises:
        IntegrityError: it is no such file.
    """
    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}); {REMEDY}") from error
    with opened as tensors:
        yield CovarianceFile(path, tensors, frozenset(tensors.keys()))


def _tensor_shapes(in_features: int) -> dict[str, torch.Size]:
    """Return the tensors of a group in the order in which they lie in the file."""
    triangle = in_features * (in_features + 1) // 2
    shapes = {"rows": (), "mean": (in_features,), "total_variance": (), "scatter": (triangle,)}
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def _header_bytes(groups: Iterable[InputGroup]) -> bytes:
    """Return the beginning of a safetensors file: its length, and JSON padded to a multiple of 8 bytes."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for group in groups:
        for name, shape in _tensor_shapes(group.in_features).items():
            end = at + 8 * shape.numel()
            described[f"{group.tap}.{name}"] = {"dtype": "F64", "shape": list(shape), "data_offsets": [at, end]}
            at = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
