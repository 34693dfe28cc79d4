"""Columns of a table from anywhere: those that were asked for, and no more of them than was said."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eva_dist.artifact.tables import MOST_ROWS, converged_by_step, read_columns, read_spectrum

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


def test_a_spectrum_by_layer():
    content = parquet(
        layer=["b", "b", "a", "b", "a"],
        explained_variance_ratio=[0.5, 0.25, 0.75, 0.125, 0.25],
        step_converged=pa.array([4, 4, None, 4, None], pa.int32()),
        kept=[True, True, True, False, False],
    )
    spectrum = read_spectrum(content, {"a": 2, "b": 3, "c": 4})
    assert list(spectrum.ratios) == ["b", "a"]  # in the order of the rows
    assert spectrum.ratios == {"b": [0.5, 0.25, 0.125], "a": [0.75, 0.25]}
    assert (spectrum.kept, spectrum.explained) == ({"b": 2, "a": 1}, {"a": 0.75, "b": 0.75})
    assert spectrum.steps_to_converge == {"b": 5}
    with pytest.raises(ValueError, match="'b', which is no layer"):
        read_spectrum(content, {"a": 5})
    empty = read_spectrum(parquet(layer=pa.array([], pa.string()), kept=pa.array([], pa.bool_())), {"a": 1}, ["kept"])
    assert empty.kept == {}


def test_layers_converge_when_their_group_is_not_tapped_any_more():
    """Two groups of 3 and 1 layers: both are tapped at the first step, the larger one at two more."""
    step_R, layers_R = np.array([0, 0, 1, 2]), np.array([3, 1, 3, 3])
    assert converged_by_step(step_R, layers_R, 4, None) == [0.25, 0.25]
    assert converged_by_step(step_R, layers_R, 4, 4) == [0.25, 0.25, 1.0]
    assert converged_by_step(step_R, layers_R, 4, 4, steps=4) == [0.25, 0.25, 1.0, 1.0]
