"""Read an artifact back: what `build_artifact` was given, so that the same files can be built again, or others.

The strict reader: whatever is computed from an artifact comes through here, so nothing is guessed. Every file that is
read is verified against the manifest, every other one must be there in its size, and each value that the manifest says
is checked in kind, for a manifest may come from anywhere. (`summary.py` is the reader that shows what is known.)
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from eva_dist.artifact.facts import FORMAT_VERSION, Provenance
from eva_dist.artifact.file_names import COMPONENTS_FILE, CONVERGENCE_FILE, COVARIANCE_FILE, SPECTRUM_FILE
from eva_dist.artifact.tables import CONVERGENCE, RATIO, read_columns, read_spectrum
from eva_dist.calibration.controller import ConvergenceRow, GroupState, PointResult, PointState, first_state
from eva_dist.config import Budget, EvaConfig, OnMaxSteps, config_groups
from eva_dist.errors import DerivationError, IntegrityError
from eva_dist.hashing import fingerprint
from eva_dist.methods.eva import NAME, Eva
from eva_dist.numerics.components import Components
from eva_dist.plan import InputGroup, Layer, Plan, make_plan
from eva_dist.store.artifact_reader import REMEDY, FolderArtifactReader
from eva_dist.store.snapshot import MANIFEST_FILE, Snapshot, folder_snapshot, lacking

_CONTRADICTIONS = (
    KeyError,
    TypeError,
    ValueError,
    AssertionError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    SafetensorError,
    pa.ArrowException,
)
"""What the code below raises where a manifest is not what it takes it for."""
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


@dataclass(frozen=True)
class Stored:
    """An artifact read back: what `build_artifact` takes.

    Vectors are in the tracker's own dtype, singular values and ratios in float64, which holds them exactly.
    Of the pass, traffic and seconds by step are not known. `result.covariance` is in the artifact's folder.
    """

    result: PointResult
    eva: EvaConfig
    provenance: Provenance


def restore_artifact(folder: Path, snapshot: Snapshot | None = None) -> Stored:
    """Read the artifact in `folder` back.

    Args:
        folder: holds all of its files.
        snapshot: of that folder, if it is known; its manifest is not read again.

    Raises:
        ArtifactNotFoundError: there is none.
        IntegrityError: a file is missing or differs from the manifest, or the manifest contradicts itself.
        DerivationError: another version of `eva_dist` wrote it, in a format that holds less or more.
    """
    opened = FolderArtifactReader(folder, snapshot or folder_snapshot(folder))
    manifest = opened.snapshot.manifest
    _refuse_other_formats(folder, manifest)
    # What is not read here is copied or built on by whoever asked, who would find a hole in it only later.
    if gone := lacking(folder, opened.snapshot):
        raise IntegrityError(f"{folder} is incomplete: {', '.join(gone)} missing or cut; {REMEDY}")
    contents = {name: opened.read(name) for name in (COMPONENTS_FILE, SPECTRUM_FILE, CONVERGENCE_FILE)}
    try:
        provenance = _read_provenance(manifest)
        eva = _read_eva(provenance.config["eva"])
        plan = _read_plan(manifest, eva.budget)
        components, cosines = _read_components(plan, contents)
        state = _read_state(manifest, plan, eva, contents[CONVERGENCE_FILE], components, cosines)
    except _CONTRADICTIONS as error:
        raise IntegrityError(f"{folder / MANIFEST_FILE} does not fit its files ({error!r}); {REMEDY}") from error
    covariance = None
    if COVARIANCE_FILE in opened.snapshot.files:
        covariance = opened.fetch([COVARIANCE_FILE]) / COVARIANCE_FILE  # hashed, and read a group at a time
    return Stored(PointResult(state, components, provenance.world_size, covariance), eva, provenance)


def _refuse_other_formats(folder: Path, manifest: Mapping[str, Any]) -> None:
    version, method = manifest.get("format_version"), manifest.get("method")
    if method != NAME:
        raise DerivationError(f"{folder} holds method={method}, must be {NAME}; give an artifact of EVA")
    if version != FORMAT_VERSION:
        older = isinstance(version, int) and version < FORMAT_VERSION
        raise DerivationError(
            f"{folder} has format_version={version}, must be {FORMAT_VERSION}: "
            + (
                f"it keeps no {COMPONENTS_FILE}; compute it again with artifact.overwrite=true, then derive"
                if older
                else "another version of eva_dist wrote it; use that one"
            )
        )


def _read_provenance(manifest: Mapping[str, Any]) -> Provenance:
    """Return the facts that `Provenance` names; `KeyError`, `ValueError` or `TypeError` where they are none."""
    since = {"merged_from": None}  # older artifacts do not know it
    hints = get_type_hints(Provenance)
    known = since | dict(manifest)
    said = {each.name: _of_kind(each.name, known[each.name], hints[each.name]) for each in fields(Provenance)}
    said["config"] = _read_config(said["config"], manifest["rank_pattern"])
    provenance = Provenance(**said)
    # An artifact is found by its fingerprint: one that is of other settings would answer for a run that it is not.
    if fingerprint(provenance.decisive) != provenance.fingerprint:
        raise ValueError("the fingerprint is not that of `decisive`")
    if provenance.derived_from is not None:
        _of_kind("derived_from.fingerprint", provenance.derived_from["fingerprint"], str)
        _of_kind("derived_from.eva", provenance.derived_from["eva"], dict)
        _of_kind("derived_from.exact", provenance.derived_from["exact"], bool)
    _check_merged(provenance.merged_from)
    return provenance


def _read_config(config: Mapping[str, Any], patterns: Any) -> dict[str, Any]:
    groups = {key: _of_kind(f"config.{key}", config[key], dict) for key in config_groups() if key in config}
    overrides = groups.get("model", {}).get("config_overrides") or {}
    json.dumps(_of_kind("config.model.config_overrides", overrides, dict), allow_nan=False)
    # in PEFT, the first pattern that fits counts, and a sorted manifest does not keep their order
    return {**config, **groups, "eva": groups["eva"] | {"rank_pattern": dict(patterns)}}


def _read_eva(settings: Mapping[str, Any]) -> EvaConfig:
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


def _check_merged(sources: list[Any] | None, depth: int = 0) -> None:
    """Refuse what is not what `merge` has written of its sources."""
    if depth > _MOST_MERGES:
        raise ValueError(f"merged_from goes deeper than {_MOST_MERGES} merges")
    for source in sources or ():
        said = _of_kind("a source in merged_from", source, dict)
        for key, kind in _OF_A_SOURCE.items():
            _of_kind(f"merged_from: {key}", said[key], kind)
        _of_kind("merged_from: data.path", said["data"]["path"], str)
        if _finite_number("merged_from: weight", said["weight"]) <= 0:
            raise ValueError("merged_from: weight must be > 0")
        _check_merged(_of_kind("merged_from", said["merged_from"], list[Any] | None), depth + 1)


def _read_plan(manifest: Mapping[str, Any], budget: Budget) -> Plan:
    """Return the plan; layers in model order, which `decisive` keeps and a sorted manifest does not."""
    described = manifest["layers"]
    sizes = ("in_features", "out_features", "r", "max_rank")
    layers = []
    for name, *_ in manifest["decisive"]["layers"]:
        numbers = {key: _whole_number(f"{key} of {name}", described[name][key], 1) for key in sizes}
        layers.append(Layer(str(name), **numbers, transposed=bool(described[name]["transposed"])))
    plan = make_plan(layers, [group["members"] for group in manifest["input_groups"].values()], budget=budget)
    # The plan counts components by its own rule: where the writer counted others, tensors and plan do not fit.
    for group in plan.groups:
        if group.n_components != manifest["input_groups"][group.tap]["n_components"]:
            raise ValueError(f"n_components of {group.tap}")
    return plan


def _read_components(
    plan: Plan, contents: Mapping[str, bytes]
) -> tuple[dict[int, Components], dict[int, Tensor | None]]:
    """Return components and last cosines by group."""
    vectors = load(contents[COMPONENTS_FILE])
    most = {name: group.n_components for group in plan.groups for name in group.members}
    spectrum = read_spectrum(contents[SPECTRUM_FILE], most, ("singular_value", RATIO, "cosine"))
    by_layer = {column: spectrum.by_layer(column) for column in spectrum.columns}
    components, cosines = {}, {}
    for group in plan.groups:
        # Every member of a group has the same rows in the spectrum, so the tap speaks for all.
        values_K, ratios_K, cosines_K = (
            torch.tensor(by_layer[column].get(group.tap, ()), dtype=torch.float64) for column in by_layer
        )
        # All that the tracker followed, or nothing: a group that saw no token has no row.
        count = len(values_K)
        if vectors[group.tap].shape != (count, group.in_features) or count not in (0, group.n_components):
            raise ValueError(f"components of {group.tap}")
        components[group.index] = Components(vectors[group.tap], values_K, ratios_K)
        known_K = cosines_K[~cosines_K.isnan()]  # none where there were fewer than two updates
        cosines[group.index] = known_K if len(known_K) else None
    return components, cosines


def _read_state(
    manifest: Mapping[str, Any],
    plan: Plan,
    eva: EvaConfig,
    history: bytes,
    components: Mapping[int, Components],
    cosines: Mapping[int, Tensor | None],
) -> PointState:
    index = {group.tap: group.index for group in plan.groups}
    steps = _whole_number("steps", manifest["steps"])
    rows = read_columns(history, CONVERGENCE.names, (steps + 1) * len(plan.groups)).to_pylist()
    return replace(
        first_state(plan, Eva(eva.tau), eva.max_steps, eva.on_max_steps is OnMaxSteps.accept),
        groups=tuple(
            _read_group(manifest, group, components[group.index], cosines[group.index]) for group in plan.groups
        ),
        # As they were handed out, not handed out anew: a derivation does that when its settings ask for it.
        ranks={layer.name: _whole_number("rank", manifest["layers"][layer.name]["rank"]) for layer in plan.layers},
        steps=steps,
        tokens=_whole_number("tokens", manifest["tokens"]),
        epoch=_whole_number("epoch", manifest["epoch"]),
        exhausted=bool(manifest["exhausted"]),
        seconds={key: _finite_number("seconds_by_phase", spent) for key, spent in manifest["seconds_by_phase"].items()},
        history=tuple(ConvergenceRow(group=index[row.pop("input_group")], **row) for row in rows),
        pass_seconds=_finite_number("seconds", manifest["seconds"]),
    )


def _read_group(
    manifest: Mapping[str, Any], group: InputGroup, components: Components, cosines_K: Tensor | None
) -> GroupState:
    """Return what the driver knew of a group when its pass ended."""
    counts = manifest["input_groups"][group.tap]
    rows, updates, skipped = (_whole_number(key, counts[key]) for key in ("rows", "updates", "skipped_steps"))
    converged_to = counts.get("converged_to")
    return GroupState(
        ratios_K=components.explained_variance_ratio_K if updates else None,
        cosines_K=cosines_K,
        rows=rows,
        updates=updates,
        skipped=skipped,
        step=_whole_number("step", counts["step"], -1),
        converged_to=None if converged_to is None else _finite_number("converged_to", converged_to),
    )


def _whole_number(name: str, value: Any, least: int = 0) -> int:
    """Return a whole number that is at least `least`; `ValueError` for anything else."""
    if type(value) is not int or not least <= value < 1 << 50:
        raise ValueError(f"{name}={value!r:.60} must be a whole number from {least}")
    return value


def _finite_number(name: str, value: Any) -> float:
    """Return a finite number; `ValueError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r:.60} must be a finite number")
    return value


def _of_kind(name: str, value: Any, hint: Any) -> Any:
    """Return a value if it is of the type that a hint names; what a dict or a list holds is not looked at."""
    if hint is Any:
        return value
    if hint is float:
        return _finite_number(name, value)
    options = get_args(hint) if type(None) in get_args(hint) else [hint]
    kinds = [get_origin(option) or option for option in options]
    if type(value) not in kinds:  # a bool is no number here
        raise TypeError(f"{name} is {type(value).__name__}, must be {' or '.join(kind.__name__ for kind in kinds)}")
    return value
