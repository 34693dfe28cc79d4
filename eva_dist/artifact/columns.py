"""Columns of a table of an artifact: of one from anywhere, nothing is unpacked before its size is known."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST_ROWS = 2_000_000
"""Of any table: 1000 steps of 2000 input groups."""

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
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        metadata, schema = file.metadata, file.schema_arrow
    most_rows = min(most_rows, MOST_ROWS)
    if metadata.num_rows > most_rows:
        raise ValueError(f"{metadata.num_rows:,} rows, must be at most {most_rows:,}")
    if missing := sorted(set(columns) - set(schema.names)):
        raise ValueError(f"it has no column {', '.join(missing)}")
    if nested := [name for name in columns if pa.types.is_nested(schema.field(name).type)]:
        raise ValueError(f"its column {nested[0]} holds no plain values")
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    most_bytes = _BYTES_FOR_TEXTS + metadata.num_rows * metadata.num_columns * _BYTES_A_CELL
    if size > most_bytes:
        raise ValueError(f"it unpacks to {size:,} bytes, must be at most {most_bytes:,} of so many rows")
    texts = [name for name in columns if pa.types.is_string(schema.field(name).type)]
    with pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts) as file:
        table = file.read(columns=list(columns)).unify_dictionaries()
    for name in texts:
        _refuse_long(name, table[name])
    return table


def _refuse_long(name: str, column: pa.ChunkedArray) -> None:
    for chunk in column.chunks:
        longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
        if longest > _LONGEST_TEXT:
            raise ValueError(f"its column {name} holds a text of {longest:,} bytes, must be at most {_LONGEST_TEXT}")
