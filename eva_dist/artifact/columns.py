"""Columns of a table of an artifact: of one from anywhere, nothing is unpacked before its size is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST_ROWS = 2_000_000
"""Of any table: 1000 steps of 2000 input groups."""

MOST_BYTES = 64 << 20
"""Of a file."""
_CODECS = frozenset({"SNAPPY", "UNCOMPRESSED"})
"""What `artifact/tables.py` writes; an unpacked size is only claimed, and Snappy cannot pack more than 1 to 22."""
_TEXT = "BYTE_ARRAY"
_PLAIN = frozenset({_TEXT, "INT32", "INT64", "FLOAT", "DOUBLE", "BOOLEAN"})
_LONGEST_TEXT = 1024
_BYTES_A_CELL = 64
_BYTES_FOR_TEXTS = 16 << 20


def read_columns(content: bytes, columns: Sequence[str], most_rows: int = MOST_ROWS) -> pa.Table:
    """Return these columns of a Parquet file; texts as a dictionary, in which each is there once.

    Args:
        content: the file.
        columns: their names; others are not unpacked.
        most_rows: what the manifest can mean; `MOST_ROWS` holds besides.

    Raises:
        ValueError: it has more rows, lacks a column, or its columns are larger than so many rows can make them.
        pa.ArrowException: it is no Parquet file.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"{len(content):,} bytes, must be at most {MOST_BYTES:,}")
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        metadata, top = file.metadata, set(file.schema_arrow.names)
    most_rows = min(most_rows, MOST_ROWS)
    if metadata.num_rows > most_rows:
        raise ValueError(f"{metadata.num_rows:,} rows, must be at most {most_rows:,}")
    if missing := sorted(set(columns) - top):
        raise ValueError(f"it has no column {', '.join(missing)}")
    # By what the file holds: what Arrow makes of it, that file's own words may change.
    leaves = {leaf.path: leaf for leaf in (metadata.schema.column(i) for i in range(metadata.num_columns))}
    for name in columns:
        if name not in leaves or leaves[name].max_repetition_level or leaves[name].physical_type not in _PLAIN:
            raise ValueError(f"its column {name} holds no plain values")
    _refuse_large(metadata)
    texts = [name for name in columns if leaves[name].physical_type == _TEXT]
    with pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts) as file:
        # Arrow's threads, should they start as the process ends, abort it.
        table = file.read(columns=list(columns), use_threads=False).unify_dictionaries()
    for name in texts:
        _refuse_long(name, table[name])
    return table


def coded(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the texts of a column of `read_columns`, each once, and each row's place among them.

    Raises:
        ValueError: it holds no texts, or a row has none.
    """
    if not pa.types.is_dictionary(column.type) or column.null_count:
        raise ValueError("some rows lack their name")
    whole = column.combine_chunks()
    texts = [str(text) for text in whole.dictionary.to_pylist()]
    return texts, np.asarray(whole.indices.to_numpy(zero_copy_only=False), dtype=int)


def numbers(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return a column of `read_columns` as float64, NaN where it is null; `ValueError` for texts."""
    if pa.types.is_dictionary(column.type):
        raise ValueError("it holds texts where numbers belong")
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=float)


def _refuse_large(metadata: pq.FileMetaData) -> None:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if codecs := {group.column(i).compression for group in groups for i in range(metadata.num_columns)} - _CODECS:
        raise ValueError(f"it is packed with {', '.join(sorted(codecs))}, must be {' or '.join(sorted(_CODECS))}")
    size = sum(group.total_byte_size for group in groups)
    most_bytes = _BYTES_FOR_TEXTS + metadata.num_rows * metadata.num_columns * _BYTES_A_CELL
    if size > most_bytes:
        raise ValueError(f"it unpacks to {size:,} bytes, must be at most {most_bytes:,} of so many rows")


def _refuse_long(name: str, column: pa.ChunkedArray) -> None:
    for chunk in column.chunks:
        longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
        if longest > _LONGEST_TEXT:
            raise ValueError(f"its column {name} holds a text of {longest:,} bytes, must be at most {_LONGEST_TEXT}")
