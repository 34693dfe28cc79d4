"""The tables: `spectrum.parquet` (a row a layer and component) and `convergence.parquet` (a row a step and group).

What is read may come from anywhere: of no table is anything unpacked before its size is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eva_dist.artifact.file_names import CONVERGENCE_FILE, SPECTRUM_FILE

if TYPE_CHECKING:  # torch, which who reads tables can do without
    from eva_dist.artifact.facts import LayerFacts
    from eva_dist.calibration.controller import PointState

Array = np.ndarray[Any, Any]

MOST_ROWS = 2_000_000
"""Of any table: 1000 steps of 2000 input groups."""

MOST_BYTES = 64 << 20
"""Of a file."""

RATIO, KEPT, LAST_STEP = "explained_variance_ratio", "kept", "step_converged"

_SPECTRUM = pa.schema(
    [
        pa.field("layer", pa.string(), nullable=False),
        pa.field("component", pa.int32(), nullable=False),
        pa.field("singular_value", pa.float64(), nullable=False),
        pa.field(RATIO, pa.float64(), nullable=False),
        pa.field("cosine", pa.float64()),
        pa.field(LAST_STEP, pa.int32()),
        pa.field(KEPT, pa.bool_(), nullable=False),
    ]
)
CONVERGENCE = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("input_group", pa.string(), nullable=False),
        pa.field("rows_seen", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("components_converged", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)
_CODECS = frozenset({"SNAPPY", "UNCOMPRESSED"})
"""What we write; an unpacked size is only claimed, and Snappy cannot pack more than 1 to 22."""
_TEXT = "BYTE_ARRAY"
_FLAT_TYPES = frozenset({_TEXT, "INT32", "INT64", "FLOAT", "DOUBLE", "BOOLEAN"})
_LONGEST_TEXT = 1024
_BYTES_A_CELL = 64
_BYTES_FOR_TEXTS = 16 << 20


def write_tables(folder: Path, layers: Sequence[LayerFacts], state: PointState) -> None:
    """Write both tables; the same input gives the same bytes."""
    spectrum = [row for facts in layers for row in _spectrum_rows(facts)]
    pq.write_table(pa.Table.from_pylist(spectrum, schema=_SPECTRUM), folder / SPECTRUM_FILE)
    # The schema chooses the columns: the group is there by the name of its tap, not by its index.
    convergence = [vars(row) | {"input_group": state.plan.groups[row.group].tap} for row in state.history]
    pq.write_table(pa.Table.from_pylist(convergence, schema=CONVERGENCE), folder / CONVERGENCE_FILE)


@dataclass(frozen=True)
class Spectrum:
    """Columns of `spectrum.parquet`, as float64 with NaN where the file has null.

    Attributes:
        names: layers, each once.
        layer_R: for each row the place of its layer in `names`.
        columns: by name, a value for each row.
    """

    names: Sequence[str]
    layer_R: Array
    columns: Mapping[str, Array]

    def by_layer(self, column: str) -> dict[str, Array]:
        """Return the values of each layer in the order of the rows; layers in the order of their first rows."""
        order_R = np.argsort(self.layer_R, kind="stable")
        counts_L = np.bincount(self.layer_R, minlength=len(self.names))
        ends_L = np.cumsum(counts_L)
        values = np.split(self.columns[column][order_R], ends_L[:-1])
        present = [at for at, count in enumerate(counts_L.tolist()) if count]
        present.sort(key=lambda at: order_R[ends_L[at] - counts_L[at]])
        return {self.names[at]: values[at] for at in present}

    @cached_property
    def ratios(self) -> dict[str, list[float]]:
        """Each layer's explained-variance ratios, those of components without a rank too."""
        return {name: values.tolist() for name, values in self.by_layer(RATIO).items()}

    @cached_property
    def kept(self) -> dict[str, int]:
        """How many components of each layer are kept."""
        return {name: int((values > 0).sum()) for name, values in self.by_layer(KEPT).items()}

    @cached_property
    def explained(self) -> dict[str, float]:
        """The share of its input's variance that each layer's kept components explain."""
        # Added up in the order of the rows, so that every reader has the same last digit.
        shares = np.bincount(self.layer_R, self.columns[RATIO] * (self.columns[KEPT] > 0), minlength=len(self.names))
        return dict(zip(self.names, shares.tolist(), strict=True))

    @cached_property
    def steps_to_converge(self) -> dict[str, int]:
        """After how many steps each layer was not updated any more; layers that always were are not there."""
        last = {name: values[0] for name, values in self.by_layer(LAST_STEP).items()}
        return {name: int(step) + 1 for name, step in last.items() if np.isfinite(step)}


def read_spectrum(
    content: bytes, most: Mapping[str, int], columns: Sequence[str] = (RATIO, LAST_STEP, KEPT)
) -> Spectrum:
    """Return columns of `spectrum.parquet`.

    Args:
        content: the file.
        most: layer name to how many components of it there may be; others are refused.
        columns: those to read, beside `layer`; all hold numbers.

    Raises:
        ValueError: it has other layers, more rows, or no such columns; see `read_columns`.
        pa.ArrowException: it is no Parquet file.
    """
    table = read_columns(content, ("layer", *columns), sum(most.values()))
    names, layer_R = coded(table["layer"])
    if unknown := next((name for name in names if name not in most), None):
        raise ValueError(f"it names {unknown[:100]!r}, which is no layer of the manifest")
    return Spectrum(names, layer_R, {column: numbers(table[column]) for column in columns})


def converged_by_step(step_R: Array, layers_R: Array, total: int, at_end: int | None, steps: int = 0) -> list[float]:
    """Return the share of layers that have converged after each step, 0..1.

    A group is tapped at a step exactly if it had not converged after the one before, so the rows of the next step
    tell who still turned; after the last one somebody else must.

    Args:
        step_R: the step of each row, from 0.
        layers_R: how many layers the row's group serves.
        total: layers in all.
        at_end: how many had converged after the last step; None: not known, and that step is left out.
        steps: how many there were, where the last ones may have no row.
    """
    turning = np.bincount(step_R, weights=layers_R, minlength=steps)[1:].tolist()
    shares = [1 - still / total for still in turning]
    return shares if at_end is None else [*shares, at_end / total]


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
        if name not in leaves or leaves[name].max_repetition_level or leaves[name].physical_type not in _FLAT_TYPES:
            raise ValueError(f"its column {name} holds no plain values")
    _refuse_large_columns(metadata)
    texts = [name for name in columns if leaves[name].physical_type == _TEXT]
    with pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts) as file:
        # Arrow's threads, should they start as the process ends, abort it.
        table = file.read(columns=list(columns), use_threads=False).unify_dictionaries()
    for name in texts:
        _refuse_long_texts(name, table[name])
    return table


def coded(column: pa.ChunkedArray) -> tuple[list[str], Array]:
    """Return the texts of a column of `read_columns`, each once, and each row's place among them.

    Raises:
        ValueError: it holds no texts, or a row has none.
    """
    if not pa.types.is_dictionary(column.type) or column.null_count:
        raise ValueError("some rows lack their name")
    whole = column.combine_chunks()
    texts = [str(text) for text in whole.dictionary.to_pylist()]
    return texts, np.asarray(whole.indices.to_numpy(zero_copy_only=False), dtype=int)


def numbers(column: pa.ChunkedArray) -> Array:
    """Return a column of `read_columns` as float64, NaN where it is null; `ValueError` for texts."""
    if pa.types.is_dictionary(column.type):
        raise ValueError("it holds texts where numbers belong")
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=float)


def _spectrum_rows(facts: LayerFacts) -> list[dict[str, Any]]:
    """Return a row for each component of the layer's group, those beyond `rank` included.

    `step_converged` is the step after which the group was not updated any more; None where artifacts were merged.
    """
    values = facts.components.singular_values_K.double().tolist()
    ratios = facts.components.explained_variance_ratio_K.double().tolist()
    cosines_K = facts.known.cosines_K
    cosines = [None] * len(values) if cosines_K is None else cosines_K.double().tolist()
    step = facts.known.step if facts.converged and facts.known.step >= 0 else None
    return [
        {
            "layer": facts.name,
            "component": component,
            "singular_value": value,
            RATIO: ratio,
            "cosine": cosine,
            LAST_STEP: step,
            KEPT: component < facts.rank,
        }
        for component, (value, ratio, cosine) in enumerate(zip(values, ratios, cosines, strict=True))
    ]


def _refuse_large_columns(metadata: pq.FileMetaData) -> None:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if codecs := {group.column(i).compression for group in groups for i in range(metadata.num_columns)} - _CODECS:
        raise ValueError(f"it is packed with {', '.join(sorted(codecs))}, must be {' or '.join(sorted(_CODECS))}")
    size = sum(group.total_byte_size for group in groups)
    most_bytes = _BYTES_FOR_TEXTS + metadata.num_rows * metadata.num_columns * _BYTES_A_CELL
    if size > most_bytes:
        raise ValueError(f"it unpacks to {size:,} bytes, must be at most {most_bytes:,} of so many rows")


def _refuse_long_texts(name: str, column: pa.ChunkedArray) -> None:
    for chunk in column.chunks:
        longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
        if longest > _LONGEST_TEXT:
            raise ValueError(f"its column {name} holds a text of {longest:,} bytes, must be at most {_LONGEST_TEXT}")
