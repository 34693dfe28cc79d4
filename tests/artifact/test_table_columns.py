"""Columns of a table from anywhere: those that were asked for, and no more of them than was said."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eva_dist.artifact.tables import MOST_ROWS, read_columns

ROWS = 5000


def parquet(**columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def test_columns_come_as_they_are():
    names, steps = [f"layer.{i % 7}" for i in range(ROWS)], list(range(ROWS))
    whole = parquet(layer=names, step=steps, other=[[1]] * ROWS)
    assert read_columns(whole, ["step", "layer"], ROWS).to_pydict() == {"step": steps, "layer": names}


def test_row_groups_share_their_texts():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"layer": ["a", "b", "c", None]}), sink, row_group_size=1)
    assert read_columns(sink.getvalue().to_pybytes(), ["layer"]).to_pydict() == {"layer": ["a", "b", "c", None]}


@pytest.mark.parametrize(
    ("columns", "most_rows", "why"),
    [
        ({"layer": ["a"] * ROWS}, ROWS - 1, "5,000 rows, must be at most 4,999"),
        ({"layer": pa.nulls(MOST_ROWS + 1, pa.string())}, MOST_ROWS * 2, "2,000,001 rows, must be at most 2,000,000"),
        ({"step": [1]}, 1, "no column layer"),
        ({"layer": [["a"]]}, 1, "holds no plain values"),
        ({"layer": ["a" * 2000] * 100}, 100, "a text of 2,000 bytes"),
        ({"layer": ["a"], "other": ["a" * (17 << 20)]}, 1, "it unpacks to 17,825,.* bytes, must be at most"),
    ],
)
def test_bombs_are_refused(columns, most_rows, why):
    content = parquet(**columns)
    assert len(content) < 1 << 20
    with pytest.raises(ValueError, match=why):
        read_columns(content, ["layer"], most_rows)
