"""Read an artifact back: what `build_artifact` was given, so that the same files can be built again, or others.

Every file that is read is verified against the manifest, and every other one must be there in its size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from eva_dist.artifact.columns import read_columns
from eva_dist.artifact.facts import FORMAT_VERSION, Provenance
from eva_dist.artifact.file_names import COMPONENTS_FILE, CONVERGENCE_FILE, COVARIANCE_FILE, SPECTRUM_FILE
from eva_dist.artifact.read_facts import counted, measured, read_eva, read_provenance
from eva_dist.calibration.controller import ConvergenceRow, GroupState, PointResult, PointState, first_state
from eva_dist.config import Budget, EvaConfig, OnMaxSteps
from eva_dist.errors import DerivationError, IntegrityError
from eva_dist.methods.eva import NAME, Eva
from eva_dist.numerics.components import Components
from eva_dist.plan import InputGroup, Layer, Plan, make_plan
from eva_dist.store.artifact_reader import REMEDY, FolderArtifactReader
from eva_dist.store.snapshot import MANIFEST_FILE, Snapshot, folder_snapshot, lacking

_SPECTRUM = ("layer", "singular_value", "explained_variance_ratio", "cosine")
_CONVERGENCE = ("step", "input_group", "rows_seen", "rank", "components_converged", "seconds")
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
    if gone := lacking(folder, opened.snapshot):
        raise IntegrityError(f"{folder} is incomplete: {', '.join(gone)} missing or cut; {REMEDY}")
    contents = {name: opened.read(name) for name in (COMPONENTS_FILE, SPECTRUM_FILE, CONVERGENCE_FILE)}
    try:
        provenance = read_provenance(manifest)
        eva = read_eva(provenance.config["eva"])
        plan = _plan(manifest, eva.budget)
        components, cosines = _components(plan, contents)
        state = _state(manifest, plan, eva, contents[CONVERGENCE_FILE], components, cosines)
    except _CONTRADICTIONS as error:
        raise IntegrityError(f"{folder / MANIFEST_FILE} does not fit its files ({error!r}); {REMEDY}") from error
    covariance = None
    if COVARIANCE_FILE in opened.snapshot.files:
        covariance = opened.fetch([COVARIANCE_FILE]) / COVARIANCE_FILE
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


def _plan(manifest: Mapping[str, Any], budget: Budget) -> Plan:
    """Return the plan; layers in model order, which `decisive` keeps and a sorted manifest does not."""
    described = manifest["layers"]
    sizes = ("in_features", "out_features", "r", "max_rank")
    layers = []
    for name, *_ in manifest["decisive"]["layers"]:
        numbers = {key: counted(f"{key} of {name}", described[name][key], 1) for key in sizes}
        layers.append(Layer(str(name), **numbers, transposed=bool(described[name]["transposed"])))
    plan = make_plan(layers, [group["members"] for group in manifest["input_groups"].values()], budget=budget)
    for group in plan.groups:
        if group.n_components != manifest["input_groups"][group.tap]["n_components"]:
            raise ValueError(f"n_components of {group.tap}")
    return plan


def _components(plan: Plan, contents: Mapping[str, bytes]) -> tuple[dict[int, Components], dict[int, Tensor | None]]:
    """Return components and last cosines by group; every member of a group has the same rows in the spectrum."""
    vectors = load(contents[COMPONENTS_FILE])
    rows: dict[str, list[dict[str, Any]]] = {layer.name: [] for layer in plan.layers}
    most_rows = sum(len(group.members) * group.n_components for group in plan.groups)
    for row in read_columns(contents[SPECTRUM_FILE], _SPECTRUM, most_rows).to_pylist():
        rows[row["layer"]].append(row)
    components, cosines = {}, {}
    for group in plan.groups:
        own = rows[group.tap]
        if vectors[group.tap].shape != (len(own), group.in_features) or len(own) not in (0, group.n_components):
            raise ValueError(f"components of {group.tap}")
        values_K, ratios_K = (
            torch.tensor([row[key] for row in own], dtype=torch.float64)
            for key in ("singular_value", "explained_variance_ratio")
        )
        components[group.index] = Components(vectors[group.tap], values_K, ratios_K)
        known = [row["cosine"] for row in own if row["cosine"] is not None]
        cosines[group.index] = torch.tensor(known, dtype=torch.float64) if known else None
    return components, cosines


def _state(
    manifest: Mapping[str, Any],
    plan: Plan,
    eva: EvaConfig,
    history: bytes,
    components: Mapping[int, Components],
    cosines: Mapping[int, Tensor | None],
) -> PointState:
    index = {group.tap: group.index for group in plan.groups}

    steps = counted("steps", manifest["steps"])
    rows = read_columns(history, _CONVERGENCE, (steps + 1) * len(plan.groups)).to_pylist()

    def known(group: InputGroup) -> GroupState:
        counts = manifest["input_groups"][group.tap]
        rows, updates, skipped = (counted(key, counts[key]) for key in ("rows", "updates", "skipped_steps"))
        converged_to = counts.get("converged_to")
        return GroupState(
            ratios_K=components[group.index].explained_variance_ratio_K if updates else None,
            cosines_K=cosines[group.index],
            rows=rows,
            updates=updates,
            skipped=skipped,
            step=counted("step", counts["step"], -1),
            converged_to=None if converged_to is None else measured("converged_to", converged_to),
        )

    return replace(
        first_state(plan, Eva(eva.tau), eva.max_steps, eva.on_max_steps is OnMaxSteps.accept),
        groups=tuple(known(group) for group in plan.groups),
        ranks={layer.name: counted("rank", manifest["layers"][layer.name]["rank"]) for layer in plan.layers},
        steps=steps,
        tokens=counted("tokens", manifest["tokens"]),
        epoch=counted("epoch", manifest["epoch"]),
        exhausted=bool(manifest["exhausted"]),
        seconds={key: measured("seconds_by_phase", spent) for key, spent in manifest["seconds_by_phase"].items()},
        history=tuple(ConvergenceRow(group=index[row.pop("input_group")], **row) for row in rows),
        pass_seconds=measured("seconds", manifest["seconds"]),
    )
