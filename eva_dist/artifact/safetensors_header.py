"""Where each tensor lies in a safetensors file: its header, which is believed only as far as it is proven.

A file is the header's length (8 bytes, little-endian), the header (JSON), then the tensors, one after the other with
no gap and no overlap. A header may come from anywhere and may lie: everything here is checked against the size of the
file and against the manifest before a byte is set aside for a tensor.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eva_dist.errors import IntegrityError

LENGTH_BYTES = 8
LARGEST_HEADER = 16 << 20
"""Some hundred thousand layers."""

_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A tensor: its bytes are [start, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_length(first: bytes, file_size: int) -> int:
    """Return the length of the header, from the first 8 bytes; `IntegrityError` if the file is not as large."""
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if len(first) < LENGTH_BYTES or not 2 <= length <= min(LARGEST_HEADER, file_size - LENGTH_BYTES):
        raise IntegrityError(
            f"its header claims {length} bytes, must be 2 to {min(LARGEST_HEADER, file_size - LENGTH_BYTES)}"
        )
    return length


def read_header(header: bytes, file_size: int) -> dict[str, Span]:
    """Return the tensors by name, in the order of the file.

    Raises:
        IntegrityError: it is no JSON, names a tensor twice, or the tensors do not fill the file exactly.
    """
    try:
        described = json.loads(header, object_pairs_hook=_refuse_repeats)
        described.pop("__metadata__", None)
        at = LENGTH_BYTES + len(header)
        spans = {str(name): _read_span(name, said, at) for name, said in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"its header is none ({type(error).__name__}: {error})") from error
    in_order = dict(sorted(spans.items(), key=lambda item: (item[1].start, item[1].end)))
    for name, span in in_order.items():
        if span.start != at:
            raise IntegrityError(f"its header has {name} at byte {span.start}, must be {at}: no gaps, no overlaps")
        at = span.end
        if at > file_size:
            raise IntegrityError(f"its header has {name} end at byte {at} of a file of {file_size}")
    if at != file_size:
        raise IntegrityError(f"its header accounts for {at} of its {file_size} bytes")
    return in_order


def check_layers(spans: Mapping[str, Span], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are not the layers of a manifest, each float32 `[rank, in_features]`.

    Raises:
        IntegrityError: a layer is missing, or there is one too many, or of another type or shape.
    """
    if spans.keys() != shapes.keys():
        name = sorted(spans.keys() ^ shapes.keys())[0]
        raise IntegrityError(f"layer {name} is in only one of its header and its manifest")
    for name, span in spans.items():
        if span.dtype != "F32" or span.shape != shapes[name]:
            raise IntegrityError(
                f"its header has {name} as {span.dtype} {list(span.shape)}, but its manifest says F32 {shapes[name]}"
            )


def merged(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """Return the byte ranges that hold these tensors, neighbours joined, empty ones left out."""
    ranges: list[tuple[int, int]] = []
    for start, end in sorted((span.start, span.end) for span in spans if span.start < span.end):
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


def tensor_hashes(path: Path) -> dict[str, str]:
    """Return the sha256 (hex) of the bytes of each tensor in a file, by name."""
    size = path.stat().st_size
    with path.open("rb") as file:
        spans = read_header(file.read(header_length(file.read(LENGTH_BYTES), size)), size)
        return {name: hashlib.sha256(file.read(span.end - span.start)).hexdigest() for name, span in spans.items()}


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _read_span(name: str, said: Mapping[str, Any], at: int) -> Span:
    dtype, shape, (start, end) = said["dtype"], tuple(said["shape"]), said["data_offsets"]
    if any(type(number) is not int or not 0 <= number < 1 << 50 for number in (*shape, start, end)):
        raise ValueError(f"{name} has sizes or offsets that are none")
    if math.prod(shape) * _DTYPE_BYTES[dtype] != end - start:
        raise ValueError(f"{name} is {dtype} {list(shape)} in {end - start} bytes")
    return Span(dtype, shape, at + start, at + end)
