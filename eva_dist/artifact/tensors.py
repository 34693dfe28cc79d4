"""The tensor files: `eva_state_dict.safetensors`, the ready adapter with B = 0, and all components found.

Written as bytes that depend on the tensors alone: one metadata key at most (with several,
safetensors writes them in any order), and through Python's own file calls, so that a full
disk is an `OSError` and the files get the process's usual permissions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from eva_dist.artifact.facts import LayerFacts
from eva_dist.artifact.file_names import ADAPTER_FILE, COMPONENTS_FILE, STATE_DICT_FILE
from eva_dist.methods.eva import adapter_rows

_ADAPTER_PREFIX = "base_model.model."


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
        weights[f"{_ADAPTER_PREFIX}{facts.name}.lora_A.weight"] = tensors[facts.name]
        weights[f"{_ADAPTER_PREFIX}{facts.name}.lora_B.weight"] = torch.zeros(facts.layer.out_features, facts.rank)
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
