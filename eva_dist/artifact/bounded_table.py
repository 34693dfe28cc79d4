"""Read a table of an artifact that may be made to fill memory: a few kilobytes of Parquet can say gigabytes.

A text that a million rows share is written once and read a million times, and a page of zeros shrinks to nothing. So
texts are read as dictionaries, and rows, types, codecs and sizes are looked at before anything is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MOST_BYTES = 64 * 2**20
"""Of a table, as a file and unpacked: a row is some 20 bytes, so this is more rows than `MOST_ROWS`."""
MOST_ROWS = 2_000_000
_CODECS = frozenset({"SNAPPY", "UNCOMPRESSED"})
"""What `artifact/tables.py` writes; the unpacked size is only claimed, and Snappy cannot pack more than 1 to 22."""
_TEXT = frozenset({"BYTE_ARRAY"})
_NUMBER = frozenset({"INT32", "INT64", "FLOAT", "DOUBLE", "BOOLEAN"})


def read_columns(content: bytes, text: str, numbers: Sequence[str], most_rows: int | None = None) -> pa.Table:
    """Return columns of a Parquet file, `text` as a dictionary.

    Args:
        content: the file.
        text: name of the column that holds texts.
        numbers: names of columns that hold numbers or truth values.
        most_rows: no table of this artifact has more; None where nothing says so.

    Raises:
        ValueError: it is no table of these columns, or more than may be read. pyarrow's own errors are ValueErrors too,
            or OSErrors.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(content) > MOST_BYTES:
        raise ValueError(f"{len(content):,} bytes are more than may be read ({MOST_BYTES:,})")
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=[text])
    rows, most = file.metadata.num_rows, MOST_ROWS if most_rows is None else min(most_rows, MOST_ROWS)
    if rows > most:
        raise ValueError(f"{rows:,} rows are more than its layers and steps can have ({most:,})")
    columns = {file.metadata.schema.column(at).path: at for at in range(file.metadata.num_columns)}
    for name, types in ((text, _TEXT), *((name, _NUMBER) for name in numbers)):
        if name not in columns:
            raise ValueError(f"it has no column {name}")
        described = file.metadata.schema.column(columns[name])
        if described.physical_type not in types or described.max_repetition_level:
            raise ValueError(f"its column {name} is {described.physical_type}, must be {' or '.join(sorted(types))}")
    _refuse_large(file.metadata, [columns[name] for name in (text, *numbers)])
    return file.read(columns=[text, *numbers], use_threads=False)


def _refuse_large(metadata: Any, columns: Sequence[int]) -> None:
    chunks = [metadata.row_group(group).column(at) for group in range(metadata.num_row_groups) for at in columns]
    if codecs := sorted({chunk.compression for chunk in chunks} - _CODECS):
        raise ValueError(f"it is packed with {', '.join(codecs)}, must be {' or '.join(sorted(_CODECS))}")
    if (unpacked := sum(chunk.total_uncompressed_size for chunk in chunks)) > MOST_BYTES:
        raise ValueError(f"{unpacked:,} unpacked bytes are more than may be read ({MOST_BYTES:,})")


def coded(column: Any) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the texts of a column of `read_columns`, each once, and each row's place among them.

    Raises:
        ValueError: a row has none.
    """
    import numpy as np

    if column.null_count:
        raise ValueError("some rows lack their name")
    encoded = column.combine_chunks()
    texts = [str(text) for text in encoded.dictionary.to_pylist()]
    return texts, np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=int)
