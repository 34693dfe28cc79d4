"""The settings and facts in which the manifests of two artifacts differ."""

from collections.abc import Mapping
from typing import Any

from eva_dist.artifact.listing import at
from eva_dist.report.settings import flatten, same

_GROUPS = ("model", "data", "eva", "solver")
_FACTS = (
    *(("model", key) for key in ("id", "revision", "config_sha256", "weights", "dtype")),
    *(("tokenizer", "sha256"), ("data", "digest"), ("data", "samples"), ("derived_from", "fingerprint")),
    *((key,) for key in ("method", "status", "steps", "tokens", "trainable_parameters")),
)
"""What a run found or was given, beside its settings."""


def differing_settings(manifest_a: Mapping[str, Any], manifest_b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the two values of each setting or fact that differs, by key; None for what one manifest does not say."""
    first, second = _known_settings(manifest_a), _known_settings(manifest_b)
    return {
        key: (first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if same(first.get(key)) != same(second.get(key))
    }


def _known_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    groups = {key: group for key in _GROUPS if isinstance(group := at(manifest, "config", key), dict)}
    return flatten(groups) | {f"({' '.join(path)})": at(manifest, *path) for path in _FACTS}
