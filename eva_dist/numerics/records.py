"""Frozen records of tensors and integers, nested as trackers keep them, to named tensors and back: no pickle."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

RecordT = TypeVar("RecordT")


def map_tensors(record: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the record with every tensor in it changed; what is no tensor stays."""
    if isinstance(record, Tensor):
        return change(record)
    if not is_dataclass(record) or isinstance(record, type):
        return record
    return replace(record, **{f.name: map_tensors(getattr(record, f.name), change) for f in fields(record)})


def to_tensors(record: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the leaves of a record by dotted name, on the CPU, contiguous, each in memory of its own.

    An integer becomes an int64 scalar.
    """
    found: dict[str, Tensor] = {}
    for f in fields(record):
        value, name = getattr(record, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            found |= to_tensors(value, f"{name}.")
        else:
            leaf = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
            found[name] = leaf.detach().to("cpu", copy=True).contiguous()
    return found


def from_tensors(kind: type[RecordT], tensors: Mapping[str, Tensor], prefix: str = "") -> RecordT:
    """Return the record of which `to_tensors` made these.

    Raises:
        KeyError: a leaf is missing.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for f in fields(kind):  # type: ignore[arg-type]
        hint, name = hints[f.name], f"{prefix}{f.name}"
        if is_dataclass(hint):
            values[f.name] = from_tensors(hint, tensors, f"{name}.")  # type: ignore[arg-type]
        else:
            values[f.name] = tensors[name] if hint is Tensor else int(tensors[name])
    return kind(**values)
