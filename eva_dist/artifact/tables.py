"""The tables: `spectrum.parquet` (a row a layer and component) and `convergence.parquet` (a row a step and group)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eva_dist.artifact.facts import LayerFacts
from eva_dist.artifact.file_names import CONVERGENCE_FILE, SPECTRUM_FILE
from eva_dist.calibration.controller import PointState

_SPECTRUM = pa.schema(
    [
        pa.field("layer", pa.string(), nullable=False),
        pa.field("component", pa.int32(), nullable=False),
        pa.field("singular_value", pa.float64(), nullable=False),
        pa.field("explained_variance_ratio", pa.float64(), nullable=False),
        pa.field("cosine", pa.float64()),
        pa.field("step_converged", pa.int32()),
        pa.field("kept", pa.bool_(), nullable=False),
    ]
)
_CONVERGENCE = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("input_group", pa.string(), nullable=False),
        pa.field("rows_seen", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("components_converged", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)


def write_tables(folder: Path, layers: Sequence[LayerFacts], state: PointState) -> None:
    """Write both tables; the same input gives the same bytes."""
    spectrum = [row for facts in layers for row in _spectrum_rows(facts)]
    pq.write_table(pa.Table.from_pylist(spectrum, schema=_SPECTRUM), folder / SPECTRUM_FILE)
    convergence = [
        {
            "step": row.step,
            "input_group": state.plan.groups[row.group].tap,
            "rows_seen": row.rows_seen,
            "rank": row.rank,
            "components_converged": row.components_converged,
            "seconds": row.seconds,
        }
        for row in state.history
    ]
    pq.write_table(pa.Table.from_pylist(convergence, schema=_CONVERGENCE), folder / CONVERGENCE_FILE)


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
            "explained_variance_ratio": ratio,
            "cosine": cosine,
            "step_converged": step,
            "kept": component < facts.rank,
        }
        for component, (value, ratio, cosine) in enumerate(zip(values, ratios, cosines, strict=True))
    ]
