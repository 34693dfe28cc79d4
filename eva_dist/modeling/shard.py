"""Hold a model together: which architectures can be sharded, and how each worker loads only its shard.

Sharding is FSDP2, applied and filled by transformers (`DistributedConfig`): every parameter is cut
along its first dimension over the workers of a shard group, and a *unit* (a block, an embedding, a
layer outside the blocks) is gathered when it is entered and freed when it is left. transformers'
own plan names units by Llama's names, so BERT and GPT-2 would be one single unit, gathered whole:
the units are found here instead, from the class names that a model declares as its blocks
(`_no_split_modules`).

While it loads, a worker reads its own slice of each weight and nothing else, so a shard group
reads each weight once. That is exact as long as what is stored is what is held. A checkpoint
whose weights transformers joins or splits along the first dimension would be put together
wrongly, and is refused.
"""

import ctypes
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
from transformers.distributed import DistributedConfig

from eva_dist.errors import ConfigError
from eva_dist.modeling.blocks import block_lists
from eva_dist.modeling.transformers_internals import (
    ShardMesh,
    loader_on_mesh,
    shards_stay_where_read,
    warm_attention_check,
)

_FREE = "free_full_weight"
"""transformers' word for: gather at the start of a unit's forward, free at its end."""


_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 128 * 2**10


@dataclass(frozen=True)
class Sharding:
    """Over which workers a model is held, `[replicas, shard_size]`, and whether shards lie in the CPU's memory."""

    mesh: DeviceMesh
    device: torch.device
    offload: bool = False

    @property
    def replicas(self) -> int:
        """How many whole models the gang holds."""
        return self.mesh.size(0)

    @property
    def shard_size(self) -> int:
        """How many workers hold one model together."""
        return self.mesh.size(1)


def refuse_unshardable(model: nn.Module, shard_size: int, stored: str) -> None:
    """Raise `ConfigError` if this model, here without weights, cannot be held by `shard_size` workers.

    Args:
        model: what will be run, on the meta device.
        shard_size: how many workers hold it together.
        stored: what kind of weights the settings name, if they cannot be read in slices (GGUF); else empty.
    """
    why = stored or next(_find_obstacles(model, shard_size), "")
    if why:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise ConfigError(
            f"cluster.shard_size={shard_size} must be 1 for this model ({kind}): {why}; use cluster.shard_size=1"
        )


def units(model: nn.Module) -> dict[str, str]:
    """Return transformers' FSDP plan for a model: its blocks, and what holds weights outside them, by name.

    A head that shares its weight with the embedding stays one with it, as transformers wants it.
    """
    lists = block_lists(model)
    names = [f"{name}.0" if name else "0" for name in lists]
    tied = {id(p) for p in _shared_parameters(model)}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{blocks}.") for blocks in lists)
        own = list(module.parameters(recurse=False))
        if inside or not isinstance(module, (nn.Embedding, nn.Linear)) or any(id(p) in tied for p in own):
            continue
        names.append(name)
    return {".".join("*" if part.isdigit() else part for part in name.split(".")): _FREE for name in names}


def load_shard(architecture: type[PreTrainedModel], plan: dict[str, str], sharding: Sharding, **source: Any) -> Any:
    """Return what `architecture.from_pretrained(**source)` returns, holding this worker's shard alone.

    Every worker of the process group calls this, with the same arguments.
    """
    if sharding.device.type == "cpu":
        _give_freed_memory_back()
    warm_attention_check(architecture)
    distributed = DistributedConfig(
        fsdp_size=sharding.shard_size,
        dp_replicate_size=sharding.replicas,
        fsdp_plan=plan,
        fsdp_cpu_offload=sharding.offload and sharding.device.type != "cpu",
    )
    kept = torch.device("cpu") if sharding.offload else sharding.device
    loader = loader_on_mesh(architecture, ShardMesh(sharding.mesh), kept)
    with shards_stay_where_read(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "DTensor random operators")  # weights that the checkpoint lacks are noise
        loaded = loader.from_pretrained(distributed_config=distributed, **source)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    assert isinstance(model, FSDPModule)
    model.set_reshard_after_forward(True)  # transformers would keep the last norm, and FSDP2 what is in no other unit
    for module in model.modules():  # type: ignore[attr-defined]
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(sharding.device))  # FSDP moves parameters only
    return loaded


def _find_obstacles(model: nn.Module, shard_size: int) -> Iterator[str]:
    """Yield why a model cannot be sharded, clearest first."""
    if not isinstance(model, PreTrainedModel):
        yield "it is no transformers model"
        return
    if getattr(model.config, "quantization_config", None) is not None:
        yield "its weights are quantised, and are not gathered as they are stored"
    lists = block_lists(model)
    if not lists:
        yield f"{type(model).__name__} declares no repeated blocks (_no_split_modules) that could be gathered in turn"
    blocks = [block for name in lists for block in model.get_submodule(name).children()]
    owners: dict[int, int] = {}
    for i, block in enumerate(blocks):
        for parameter in block.parameters():
            if owners.setdefault(id(parameter), i) != i:
                yield "its blocks share weights with each other"
                return
    yield from _unreadable_weights(model, shard_size)


def _unreadable_weights(model: PreTrainedModel, shard_size: int) -> Iterator[str]:
    """Yield which weights are not stored as they are held, so that no slice of them can be read."""
    stacked = False
    for conversion in get_model_conversion_mapping(model):
        if not isinstance(conversion, WeightConverter):
            continue
        for operation in conversion.operations:
            stacks = isinstance(operation, MergeModulelist) and operation.dim == 0
            stacked = stacked or stacks
            if not stacks and not (isinstance(operation, Concatenate) and operation.dim > 0):
                yield (
                    f"transformers makes its {', '.join(conversion.target_patterns)} from what is stored "
                    f"({type(operation).__name__}), which needs the whole weight"
                )
                return
    if stacked:
        experts = [p.shape[0] for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3]
        if experts and min(experts) < shard_size:
            yield f"it has {min(experts)} experts a layer, and each worker must get one"


def _shared_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that more than one module holds, or will hold once they are tied."""
    everyone = [p for module in model.modules() for p in module.parameters(recurse=False)]
    counts = Counter(id(parameter) for parameter in everyone)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    names = {*tied.keys(), *tied.values()}
    by_name = [p for name, p in model.named_parameters(remove_duplicate=False) if name in names]
    return [p for p in everyone if counts[id(p)] > 1] + by_name


def _give_freed_memory_back() -> None:
    """Have glibc return blocks of 128 KiB and more to the system as they are freed, as it does at first.

    It would raise that limit as it sees units gathered and freed, and then keep their memory without
    being able to use it again (aligned blocks do not fit where such blocks were): several units' worth.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
