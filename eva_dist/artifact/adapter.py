"""`adapter_config.json`: the patterns that PEFT itself would write after loading the artifact.

The rules are those of peft 0.21, `tuners/lora/eva.py`, `_load_eva_state_dict`.
"""

from collections.abc import Sequence
from pathlib import Path

from eva_dist.artifact.facts import LayerFacts, Provenance
from eva_dist.config import EvaConfig
from eva_dist.methods.eva import layer_alpha
from eva_dist.modeling.peft_rules import write_adapter_config


def target_modules(layers: Sequence[LayerFacts]) -> list[str]:
    """Return the full names of the layers that carry an adapter."""
    return [facts.name for facts in layers if facts.rank > 0]


def rank_pattern(layers: Sequence[LayerFacts], eva: EvaConfig) -> dict[str, int]:
    """Return layer name to rank where it is not `eva.r`; rank-0 layers carry no adapter."""
    return {facts.name: facts.rank for facts in layers if facts.rank not in (0, eva.r)}


def alpha_pattern(layers: Sequence[LayerFacts], eva: EvaConfig) -> dict[str, float]:
    """Return layer name to alpha where redistribution changed it, so that `alpha / rank` stays what it was."""
    if not eva.adjust_scaling_factors:
        return {}
    return {
        facts.name: layer_alpha(eva, facts.layer.r, facts.rank)
        for facts in layers
        if facts.rank not in (0, facts.layer.r)
    }


def write_adapter(folder: Path, layers: Sequence[LayerFacts], eva: EvaConfig, provenance: Provenance) -> None:
    """Write `adapter_config.json`."""
    write_adapter_config(
        folder=folder,
        eva=eva,
        task_type=provenance.model.get("task_type"),
        base_model_name_or_path=str(provenance.model.get("id", "")),
        revision=provenance.model.get("revision"),
        target_modules=target_modules(layers),
        rank_pattern=rank_pattern(layers, eva),
        alpha_pattern=alpha_pattern(layers, eva),
        fan_in_fan_out=all(facts.layer.transposed for facts in layers),
    )
