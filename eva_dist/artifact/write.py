"""Build an artifact: every file of it, into one folder.

The tensor files are `eva_state_dict.safetensors`, the ready adapter with B = 0, and all components found. They are
written as bytes that depend on the tensors alone: one metadata key at most (with several, safetensors writes them in
any order), and through Python's own file calls, so that a full disk is an `OSError` and the files get the process's
usual permissions.

`adapter_config.json` holds the patterns that PEFT itself would write after loading the artifact, by the rules of
peft 0.21, `tuners/lora/eva.py`, `_load_eva_state_dict`.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from eva_dist.artifact.card.card import write_card
from eva_dist.artifact.card.figures import write_plots
from eva_dist.artifact.facts import LayerFacts, Provenance, layer_facts
from eva_dist.artifact.file_names import ADAPTER_FILE, ADAPTER_PREFIX, COMPONENTS_FILE, COVARIANCE_FILE, STATE_DICT_FILE
from eva_dist.artifact.manifest import write_manifest
from eva_dist.artifact.tables import write_tables
from eva_dist.calibration.controller import PointResult
from eva_dist.config import EvaConfig
from eva_dist.methods.eva import adapter_rows, layer_alpha
from eva_dist.modeling.peft_rules import write_adapter_config

__all__ = ["Provenance", "build_artifact"]


def build_artifact(folder: Path, result: PointResult, eva: EvaConfig, provenance: Provenance) -> dict[str, Any]:
    """Write every file of the artifact into the empty folder `folder`, and return the manifest.

    The layer names of `result.state.plan` must be those of the base model that users load.
    The same `result` and `eva` give the same bytes in the tensor files and the tables.

    Raises:
        OSError: the folder cannot be written.
    """
    layers = layer_facts(result)
    # The history was counted against the tau of the pass, which a derived artifact need not share.
    passed = provenance.derived_from["eva"] if provenance.derived_from else {}
    write_tensors(folder, layers, eva.whiten)
    write_adapter(folder, layers, eva, provenance)
    write_tables(folder, layers, result.state)
    write_plots(folder, layers, result.state, eva.r, passed.get("tau", eva.tau))
    if result.covariance is not None:
        shutil.copyfile(result.covariance, folder / COVARIANCE_FILE)
    write_card(folder, layers, result, eva, provenance)
    return write_manifest(folder, layers, result, eva, provenance)  # last: it lists the others with their hashes


def write_tensors(folder: Path, layers: Sequence[LayerFacts], whiten: bool) -> None:
    """Write the tensor files."""
    tensors = state_dict(layers, whiten)
    contents = {
        STATE_DICT_FILE: tensors,
        ADAPTER_FILE: adapter(layers, tensors),
        COMPONENTS_FILE: components(layers),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(save(content, metadata={"format": "pt"}))


def state_dict(layers: Sequence[LayerFacts], whiten: bool) -> dict[str, Tensor]:
    """Return base-model layer names to float32 `[rank, in_features]`; rank-0 layers stay, as `[0, in_features]`.

    A dropped rank-0 key would make PEFT give that layer a full-rank Kaiming adapter.
    """
    return {facts.name: adapter_rows(facts.components, facts.rank, whiten) for facts in layers}


def adapter(layers: Sequence[LayerFacts], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return PEFT's adapter: A `[rank, in_features]` and B zeros `[out_features, rank]`; no key for rank-0 layers."""
    weights = {}
    for facts in layers:
        if facts.rank == 0:
            continue
        weights[f"{ADAPTER_PREFIX}{facts.name}.lora_A.weight"] = tensors[facts.name]
        weights[f"{ADAPTER_PREFIX}{facts.name}.lora_B.weight"] = torch.zeros(facts.layer.out_features, facts.rank)
    return weights


def components(layers: Sequence[LayerFacts]) -> dict[str, Tensor]:
    """Return each input group's tap to all components that its tracker followed, `[n_components, in_features]`.

    Unit rows as the tracker has them, not whitened, in its own dtype: `adapter_rows` makes of them what it
    made of the tracker's. `[0, in_features]` where a group was never updated.
    """
    return {
        facts.group.tap: facts.components.v_KD.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for facts in layers
        if facts.name == facts.group.tap
    }


def write_adapter(folder: Path, layers: Sequence[LayerFacts], eva: EvaConfig, provenance: Provenance) -> None:
    """Write `adapter_config.json`; layers of rank 0 carry no adapter, so it names none of them."""
    carrying = [facts for facts in layers if facts.rank > 0]
    write_adapter_config(
        folder=folder,
        eva=eva,
        task_type=provenance.model.get("task_type"),
        base_model_name_or_path=str(provenance.model.get("id", "")),
        revision=provenance.model.get("revision"),
        target_modules=[facts.name for facts in carrying],
        rank_pattern={facts.name: facts.rank for facts in carrying if facts.rank != eva.r},
        alpha_pattern=alpha_pattern(carrying, eva),
        fan_in_fan_out=all(facts.layer.transposed for facts in layers),
    )


def alpha_pattern(layers: Sequence[LayerFacts], eva: EvaConfig) -> dict[str, float]:
    """Return layer name to alpha where redistribution changed it, so that `alpha / rank` stays what it was."""
    if not eva.adjust_scaling_factors:
        return {}
    return {facts.name: layer_alpha(eva, facts.layer.r, facts.rank) for facts in layers if facts.rank != facts.layer.r}
