"""`sweep.parquet` (a row a point and layer), `sweep.json` (the manifest), and how a file is put in place."""

import dataclasses
import hashlib
import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import eva_dist
from eva_dist.errors import StoreError
from eva_dist.render.words import without_odd_floats
from eva_dist.report.agreement import none_if_nan
from eva_dist.report.compare_points import Comparison
from eva_dist.report.point import Point
from eva_dist.report.settings import is_number, label, shared

SWEEP_FILE, TABLE_FILE, PAGE_FILE = "sweep.json", "sweep.parquet", "index.html"
FORMAT_VERSION = 1

_LAYER_FIELDS = [
    pa.field("layer", pa.string(), nullable=False),
    pa.field("input_group", pa.string(), nullable=False),
    pa.field("rank", pa.int32(), nullable=False),
    pa.field("steps_to_converge", pa.int32()),
    pa.field("explained_variance", pa.float64(), nullable=False),
    pa.field("trainable_parameters", pa.int64(), nullable=False),
    pa.field("converged", pa.bool_(), nullable=False),
]
_ATTRIBUTES = {"layer": "name", "trainable_parameters": "parameters"}
"""What a `DescribedLayer` calls those that it does not call the same."""


def table_bytes(found: Comparison) -> bytes:
    """Return `sweep.parquet`: point, name, revision, the varied settings by their keys, then what the layer got.

    A setting's column is boolean, integer, float or text if all its values are; else each value is JSON.
    """
    point_fields = [pa.field("point", pa.int32(), nullable=False), pa.field("name", pa.string(), nullable=False)]
    point_fields += [pa.field("revision", pa.string(), nullable=False)]
    types = {key: _column_type([point.settings.get(key) for point in found.points]) for key in found.varied}
    point_fields += [pa.field(key, kind or pa.string()) for key, kind in types.items()]
    rows = []
    for point in found.points:
        if point.artifact is None or point.result is None:
            continue
        of_point = {"point": point.number, "name": label(point, found.varied), "revision": point.result.revision}
        for key, kind in types.items():
            value = point.settings.get(key)
            of_point[key] = value if kind is not None or value is None else json.dumps(value, default=str)
        for layer in point.artifact.layers:
            facts = {field.name: getattr(layer, _ATTRIBUTES.get(field.name, field.name)) for field in _LAYER_FIELDS}
            rows.append(of_point | facts)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([*point_fields, *_LAYER_FIELDS])), buffer)
    return buffer.getvalue()


def _column_type(values: Sequence[Any]) -> Any:
    """Return the type that fits all values (None fits each), None if only JSON does."""
    given = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in given):
        return pa.bool_()
    if all(isinstance(value, str) for value in given):
        return pa.string()
    if all(map(is_number, given)):
        return pa.int64() if all(isinstance(value, int) for value in given) else pa.float64()
    return None


def manifest(found: Comparison, beside: Mapping[str, bytes]) -> dict[str, Any]:
    """Return `sweep.json`; `beside` are the files that it vouches for."""
    overlap, equal_ranks = (
        [[none_if_nan(round(value, 6)) for value in row] for row in matrix.tolist()]
        for matrix in (found.agreement.overlap_NN, found.agreement.equal_ranks_NN)
    )
    return {
        "format_version": FORMAT_VERSION,
        "eva_dist": eva_dist.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "varied": list(found.varied),
        "shared": shared(found.points),
        "reference": None if found.reference is None else found.points[found.reference].number,
        "points": [
            _describe_point(point, found.varied, None if figures is None else dataclasses.asdict(figures))
            for point, figures in zip(found.points, found.figures, strict=True)
        ],
        "agreement": {
            "points": [found.points[place].number for place in found.compared],
            "overlap": overlap,
            "equal_ranks": equal_ranks,
        },
        "effects": [dataclasses.asdict(effect) for effect in found.effects],
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in beside.items()
        },
    }


def json_bytes(value: Any) -> bytes:
    """Return JSON for people and programs; NaN and infinity, which a setting can hold, as text."""
    plain = without_odd_floats(value, str)
    return (json.dumps(plain, indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n").encode()


def put(path: Path, content: bytes) -> None:
    """Write a file aside and move it in, atomically.

    Raises:
        StoreError: the file system refused; nothing of the new file is left.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}; make room or grant the rights there, and run "
            f"`eva-dist report {path.parent}`"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _describe_point(point: Point, varied: Sequence[str], figures: dict[str, Any] | None) -> dict[str, Any]:
    result = point.result
    return {
        "number": point.number,
        "name": label(point, varied),
        "overrides": list(point.overrides),
        "settings": {key: point.settings[key] for key in varied if key in point.settings},
        "status": point.status,
        "url": result and result.url,
        "snapshot_url": point.artifact and point.artifact.folder.absolute().as_uri(),
        "repo_id": result and result.repo_id,
        "revision": result and result.revision,
        "fingerprint": result and result.fingerprint,
        "error": None if point.problem is None else dataclasses.asdict(point.problem),
        "figures": figures,
    }
