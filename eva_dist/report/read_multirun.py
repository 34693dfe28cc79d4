"""Points from a Hydra multirun folder: `<folder>/<n>/` with Hydra's own record, and how the run ended."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import yaml

from eva_dist.errors import ArtifactNotFoundError, ConfigError, StoreError
from eva_dist.report.point import DAMAGED, FAILED, MISSING, NOT_BEGUN, UNFINISHED, Point, Problem
from eva_dist.report.read_artifact import read_artifact
from eva_dist.report.settings import flatten
from eva_dist.run.outcome import Outcome

RESULT_FILE, ERROR_FILE, PROGRESS_FILE = "result.json", "error.json", "progress.jsonl"
_PREEMPTED = "PreemptedError"
"""Was asked to end; the same command goes on."""


def read_points(folder: Path) -> tuple[Point, ...]:
    """Return the points of a multirun folder by their number; whatever ails one of them is said in it.

    Where a run left both files, the newer one counts.

    Raises:
        ConfigError: `folder` holds no numbered folder.
    """
    entries = folder.iterdir() if folder.is_dir() else ()
    numbered = sorted((int(entry.name), entry) for entry in entries if entry.name.isdecimal() and entry.is_dir())
    points = tuple(_read_point(number, entry) for number, entry in numbered)
    if not points:
        raise ConfigError(
            f"FOLDER={folder} must be a Hydra multirun folder, with a folder 0, 1, ... a point; give the one that "
            "-m made, e.g. multirun/precompute/<date>/<time>"
        )
    return points


def _read_point(number: int, folder: Path) -> Point:
    overrides = tuple(str(item) for item in _read_yaml(folder / ".hydra" / "overrides.yaml", list))
    composed = flatten(_read_yaml(folder / ".hydra" / "config.yaml", dict))
    known = Point(
        number, overrides, composed or _settings_from_overrides(overrides), NOT_BEGUN, complete=bool(composed)
    )
    result, error = folder / RESULT_FILE, folder / ERROR_FILE
    ended = max(filter(Path.is_file, (result, error)), key=_age_of_file, default=None)
    if ended is None:
        return replace(known, status=UNFINISHED) if (folder / PROGRESS_FILE).is_file() else known
    if ended == error:
        problem = _read_failure(error)
        return replace(known, status=UNFINISHED if problem.type == _PREEMPTED else FAILED, problem=problem)
    try:
        outcome = _read_result(result)
    except (OSError, ValueError, KeyError, TypeError) as why:
        problem = Problem(type(why).__name__, f"{result} is not what a run prints ({why!r}); run the point again")
        return replace(known, status=DAMAGED, problem=problem)
    return _with_artifact(replace(known, result=outcome))


def _with_artifact(point: Point) -> Point:
    assert point.result is not None
    try:
        artifact = read_artifact(point.result.url, point.result.fingerprint)
    except (StoreError, ConfigError) as why:
        status = MISSING if isinstance(why, ArtifactNotFoundError) else DAMAGED
        return replace(point, status=status, problem=Problem(type(why).__name__, str(why)))
    return replace(point, status=point.result.status, artifact=artifact)


def _age_of_file(path: Path) -> tuple[int, bool]:
    return path.stat().st_mtime_ns, path.name == RESULT_FILE


def _read_result(path: Path) -> Outcome:
    read = json.loads(path.read_text(encoding="utf-8"))
    result = Outcome(**{field.name: read[field.name] for field in fields(Outcome)})
    for field in fields(Outcome):
        value = getattr(result, field.name)
        if not isinstance(value, (int, float) if field.type is float else cast(type, field.type)):
            raise TypeError(f"{field.name}={value!r}")
    if result.steps < 1 or not all(map(math.isfinite, (result.seconds, result.pass_seconds))):
        raise ValueError(f"steps={result.steps}, seconds={result.seconds}, pass_seconds={result.pass_seconds}")
    return result


def _read_failure(path: Path) -> Problem:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return Problem(str(read["type"]), str(read["message"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Problem("unknown", f"the point failed, and {path} does not say why ({error!r})")


def _read_yaml(path: Path, kind: type) -> Any:
    """Return what a file of Hydra's holds, empty if it is not there or not YAML of that kind."""
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return kind()
    return read if isinstance(read, kind) else kind()


def _settings_from_overrides(overrides: tuple[str, ...]) -> Mapping[str, Any]:
    """Return settings from overrides alone, for a point without a config; a key without a dot chooses a group."""
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    return {key: _parse_value(text) for key, _, text in pairs if "." in key and not key.startswith("~")}


def _parse_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
