"""Read an artifact back: what `build_artifact` was given, so that the same files can be built again, or others.

Every file that is read is verified against the manifest, and every other one must be there in its size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from eva_dist.artifact.facts import (
    COMPONENTS_FILE,
    CONVERGENCE_FILE,
    COVARIANCE_FILE,
    FORMAT_VERSION,
    METHOD,
    SPECTRUM_FILE,
    Provenance,
)
from eva_dist.artifact.load import MANIFEST_FILE, REMEDY, read_manifest, read_verified, verify
from eva_dist.config import Budget, EvaConfig, OnMaxSteps
from eva_dist.controller import ConvergenceRow, GroupState, PointResult, PointState, first_state
from eva_dist.errors import DerivationError, IntegrityError
from eva_dist.numerics.components import Components
from eva_dist.plan import InputGroup, Layer, Plan, fingerprint, make_plan
from eva_dist.store.snapshot import folder_snapshot, lacking


@dataclass(frozen=True)
class Stored:
    """An artifact read back: what `build_artifact` takes.

    Vectors are in the tracker's own dtype, singular values and ratios in float64, which holds them exactly.
    Of the pass, traffic and seconds by step are not known. `result.covariance` is in the artifact's folder.
    """

    result: PointResult
    eva: EvaConfig
    provenance: Provenance


def restore_artifact(folder: Path) -> Stored:
    """Read the artifact in `folder` back.

    Raises:
        ArtifactNotFoundError: there is none.
        IntegrityError: a file is missing or differs from the manifest, or the manifest contradicts itself.
        DerivationError: another version of `eva_dist` wrote it, in a format that holds less or more.
    """
    manifest = read_manifest(folder)
    _refuse_other_formats(folder, manifest)
    if gone := lacking(folder, folder_snapshot(folder)):
        raise IntegrityError(f"{folder} is incomplete: {', '.join(gone)} missing or cut; {REMEDY}")
    contents = {name: read_verified(folder, manifest, name) for name in (COMPONENTS_FILE, SPECTRUM_FILE)}
    history = pq.read_table(pa.BufferReader(read_verified(folder, manifest, CONVERGENCE_FILE))).to_pylist()
    try:
        since = {"merged_from": None}  # older artifacts do not know it
        provenance = Provenance(**{f.name: (since | manifest)[f.name] for f in fields(Provenance)})
        if fingerprint(provenance.decisive) != provenance.fingerprint:
            raise ValueError("the fingerprint is not that of `decisive`")
        provenance.config["eva"]["rank_pattern"] = dict(manifest["rank_pattern"])  # in PEFT, the first that fits counts
        eva = _eva_config(provenance.config["eva"])
        plan = _plan(manifest, eva.budget)
        components, cosines = _components(plan, contents)
        state = _state(manifest, plan, eva, history, components, cosines)
        covariance = folder / COVARIANCE_FILE if COVARIANCE_FILE in manifest["files"] else None
    except (KeyError, TypeError, ValueError, AssertionError, SafetensorError) as error:
        raise IntegrityError(f"{folder / MANIFEST_FILE} does not fit its files ({error!r}); {REMEDY}") from error
    if covariance is not None:
        verify(folder, manifest, COVARIANCE_FILE)
    return Stored(PointResult(state, components, provenance.world_size, covariance), eva, provenance)


def _refuse_other_formats(folder: Path, manifest: Mapping[str, Any]) -> None:
    version, method = manifest.get("format_version"), manifest.get("method")
    if method != METHOD:
        raise DerivationError(f"{folder} holds method={method}, must be {METHOD}; give an artifact of EVA")
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


def _eva_config(settings: Mapping[str, Any]) -> EvaConfig:
    hints = get_type_hints(EvaConfig)
    return EvaConfig(
        **{
            key: hints[key](value) if isinstance(hints[key], type) and issubclass(hints[key], Enum) else value
            for key, value in settings.items()
        }
    )


def _plan(manifest: Mapping[str, Any], budget: Budget) -> Plan:
    """Return the plan; layers in model order, which `decisive` keeps and a sorted manifest does not."""
    described = manifest["layers"]
    sizes = ("in_features", "out_features", "r", "max_rank", "transposed")
    layers = [
        Layer(name, **{key: described[name][key] for key in sizes}) for name, *_ in manifest["decisive"]["layers"]
    ]
    plan = make_plan(layers, [group["members"] for group in manifest["input_groups"].values()], budget=budget)
    for group in plan.groups:
        if group.n_components != manifest["input_groups"][group.tap]["n_components"]:
            raise ValueError(f"n_components of {group.tap}")
    return plan


def _components(plan: Plan, contents: Mapping[str, bytes]) -> tuple[dict[int, Components], dict[int, Tensor | None]]:
    """Return components and last cosines by group; every member of a group has the same rows in the spectrum."""
    vectors = load(contents[COMPONENTS_FILE])
    rows: dict[str, list[dict[str, Any]]] = {layer.name: [] for layer in plan.layers}
    for row in pq.read_table(pa.BufferReader(contents[SPECTRUM_FILE])).to_pylist():
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
    history: list[dict[str, Any]],
    components: Mapping[int, Components],
    cosines: Mapping[int, Tensor | None],
) -> PointState:
    index = {group.tap: group.index for group in plan.groups}

    def known(group: InputGroup) -> GroupState:
        counts = manifest["input_groups"][group.tap]
        return GroupState(
            ratios_K=components[group.index].explained_variance_ratio_K if counts["updates"] else None,
            cosines_K=cosines[group.index],
            rows=counts["rows"],
            updates=counts["updates"],
            skipped=counts["skipped_steps"],
            step=counts["step"],
            converged_to=counts.get("converged_to"),
        )

    return replace(
        first_state(plan, eva.tau, eva.max_steps, eva.on_max_steps is OnMaxSteps.accept),
        groups=tuple(known(group) for group in plan.groups),
        ranks={layer.name: manifest["layers"][layer.name]["rank"] for layer in plan.layers},
        steps=manifest["steps"],
        tokens=manifest["tokens"],
        epoch=manifest["epoch"],
        exhausted=manifest["exhausted"],
        seconds=manifest["seconds_by_phase"],
        history=tuple(ConvergenceRow(group=index[row.pop("input_group")], **row) for row in history),
        pass_seconds=manifest["seconds"],
    )
