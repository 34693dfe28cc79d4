"""What a manifest says of the run, read back: checked in kind, for a manifest may come from anywhere."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from eva_dist.artifact.facts import Provenance
from eva_dist.config import EvaConfig, config_groups
from eva_dist.hashing import fingerprint

_MOST_MERGES = 100
"""Of merges within merges."""
_OF_A_SOURCE = {
    "fingerprint": str,
    "covariance_sha256": str,
    "repo_id": str,
    "revision": str,
    "steps": int,
    "tokens": int,
    "data": dict,
}


def read_provenance(manifest: Mapping[str, Any]) -> Provenance:
    """Return the facts that `Provenance` names; `KeyError`, `ValueError` or `TypeError` where they are none."""
    since = {"merged_from": None}  # older artifacts do not know it
    hints = get_type_hints(Provenance)
    known = since | dict(manifest)
    said = {each.name: _of_kind(each.name, known[each.name], hints[each.name]) for each in fields(Provenance)}
    said["config"] = _config(said["config"], manifest["rank_pattern"])
    provenance = Provenance(**said)
    if fingerprint(provenance.decisive) != provenance.fingerprint:
        raise ValueError("the fingerprint is not that of `decisive`")
    if provenance.derived_from is not None:
        _of_kind("derived_from.fingerprint", provenance.derived_from["fingerprint"], str)
        _of_kind("derived_from.eva", provenance.derived_from["eva"], dict)
        _of_kind("derived_from.exact", provenance.derived_from["exact"], bool)
    _check_merged(provenance.merged_from)
    return provenance


def read_eva(settings: Mapping[str, Any]) -> EvaConfig:
    """Return the settings of EVA; `TypeError` or `ValueError` where a value is not of its setting's type."""
    hints = get_type_hints(EvaConfig)
    typed = {}
    for key, value in settings.items():
        hint = hints[key]
        is_enum = isinstance(hint, type) and issubclass(hint, Enum)
        typed[key] = hint(value) if is_enum else _of_kind(f"config.eva.{key}", value, hint)
    eva = EvaConfig(**typed)
    if wrong := next(eva.problems(), None):
        raise ValueError(wrong)
    return eva


def counted(name: str, value: Any, least: int = 0) -> int:
    """Return a whole number that is at least `least`; `ValueError` for anything else."""
    if type(value) is not int or not least <= value < 1 << 50:
        raise ValueError(f"{name}={value!r:.60} must be a whole number from {least}")
    return value


def measured(name: str, value: Any) -> float:
    """Return a finite number; `ValueError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r:.60} must be a finite number")
    return value


def _of_kind(name: str, value: Any, hint: Any) -> Any:
    """Return a value if it is of the type that a hint names; what a dict or a list holds is not looked at."""
    if hint is Any:
        return value
    if hint is float:
        return measured(name, value)
    options = get_args(hint) if type(None) in get_args(hint) else [hint]
    kinds = [get_origin(option) or option for option in options]
    if type(value) not in kinds:  # a bool is no number here
        raise TypeError(f"{name} is {type(value).__name__}, must be {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def _config(config: Mapping[str, Any], patterns: Any) -> dict[str, Any]:
    groups = {key: _of_kind(f"config.{key}", config[key], dict) for key in config_groups() if key in config}
    overrides = groups.get("model", {}).get("config_overrides") or {}
    json.dumps(_of_kind("config.model.config_overrides", overrides, dict), allow_nan=False)
    # in PEFT, the first pattern that fits counts, and a sorted manifest does not keep their order
    return {**config, **groups, "eva": groups["eva"] | {"rank_pattern": dict(patterns)}}


def _check_merged(sources: list[Any] | None, depth: int = 0) -> None:
    """Refuse what is not what `merge` has written of its sources."""
    if depth > _MOST_MERGES:
        raise ValueError(f"merged_from goes deeper than {_MOST_MERGES} merges")
    for source in sources or ():
        said = _of_kind("a source in merged_from", source, dict)
        for key, kind in _OF_A_SOURCE.items():
            _of_kind(f"merged_from: {key}", said[key], kind)
        _of_kind("merged_from: data.path", said["data"]["path"], str)
        if measured("merged_from: weight", said["weight"]) <= 0:
            raise ValueError("merged_from: weight must be > 0")
        _check_merged(_of_kind("merged_from", said["merged_from"], list[Any] | None), depth + 1)
