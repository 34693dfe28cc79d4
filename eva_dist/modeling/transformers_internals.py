"""Every private symbol of torch, transformers and accelerate that we use: one place to look when a version changes.

Each function says what it takes for granted; `tests/modeling/test_transformers_internals.py` holds that, so that an
upgrade which breaks it fails there, by name, and not in the middle of a run.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel, core_model_loading, modeling_utils


def declared_block_classes(model: nn.Module) -> set[str]:
    """Return the class names that a transformers model declares as its repeated blocks; none for other models."""
    return set(getattr(model, "_no_split_modules", None) or ())


def uses_sdpa(part: PreTrainedModel) -> bool:
    """Tell whether a (sub)model attends by `sdpa`, and lets its attention function be replaced by name."""
    chosen = getattr(part.config, "_attn_implementation", None)
    return chosen == "sdpa" and part._can_set_attn_implementation()


def warm_attention_check(architecture: type[PreTrainedModel]) -> None:
    """Let transformers look into a class's source file now: it caches by class, and FSDP2's subclass has no file."""
    architecture._can_set_attn_implementation()


def weights_are_moved_by_hooks(module: nn.Module) -> bool:
    """Tell whether accelerate brings this module's weights in before its forward, and takes them out after it."""
    return hasattr(module, "_hf_hook")


def loader_on_mesh(architecture: type[PreTrainedModel], mesh: Any, kept: torch.device) -> type[PreTrainedModel]:
    """Return a twin of the class whose `from_pretrained` loads on a given mesh, its weights on the device `kept`.

    transformers would make a mesh of its own: on whatever accelerator it sees, from environment
    variables that Ray's actors do not have, with collectives that time out after half an hour.

    Args:
        architecture: the class of the model.
        mesh: answers `get_mesh(names of axes)` (`ShardMesh`).
        kept: where shards lie when they have been read.
    """

    def prepare_distribute_model(cls: Any, distributed_config: Any, device_map: Any = None) -> tuple[Any, Any, Any]:
        return distributed_config, kept, mesh

    # transformers looks at the source file of a model's class: the twin must point to the same one
    body = {"prepare_distribute_model": classmethod(prepare_distribute_model), "__module__": architecture.__module__}
    return type(architecture.__name__, (architecture,), body)


class ShardMesh:
    """Our mesh, `[replicate, shard]`, under the names by which transformers asks for its axes."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def get_mesh(self, dims: str | tuple[str, ...]) -> DeviceMesh:
        """Return both axes where replicas are asked for, else the one over which parameters are cut."""
        return self._mesh if "dp_replicate" in dims else self._mesh["shard"]


@contextmanager
def shards_stay_where_read() -> Iterator[None]:
    """While open, a shard that was read to the CPU is not moved to the mesh's device: offloaded, all would not fit."""

    def keep_on_cpu(local: Tensor, like: DTensor) -> DTensor:
        return DTensor(local.contiguous(), like._spec, requires_grad=False)

    # both modules hold the function by name: replacing it in one of them alone would leave the other's
    places: list[Any] = [core_model_loading, modeling_utils]
    before = [place._dtensor_from_local_like for place in places]
    for place in places:
        place._dtensor_from_local_like = keep_on_cpu
    try:
        yield
    finally:
        for place, function in zip(places, before, strict=True):
            place._dtensor_from_local_like = function


def copy_module_tree(module: nn.Module, copied: dict[int, nn.Module] | None = None) -> nn.Module:
    """Copy modules alone: each has its own registers, and shares tensors and whatever else it holds with the first."""
    copied = {} if copied is None else copied
    if id(module) not in copied:
        copied[id(module)] = twin = copy.copy(module)
        for register in ("_parameters", "_buffers"):
            twin.__dict__[register] = dict(module.__dict__[register])
        twin.__dict__["_modules"] = {
            name: child if child is None else copy_module_tree(child, copied) for name, child in module._modules.items()
        }
    return copied[id(module)]


def tensor_version(tensor: Tensor) -> int:
    """Return how often a tensor's memory has been written in place."""
    return tensor._version


def writes_in_place(operator: Any) -> bool:
    """Tell whether an operator, as `__torch_dispatch__` is given it, changes one of its arguments."""
    return bool(operator._schema.is_mutable)


def is_matrix_product(operator: Any) -> bool:
    """Tell whether torch's counter of operations, or ours of grouped products, knows an operator."""
    packet = operator._overloadpacket
    return packet in flop_registry or packet in grouped_product_counts()


def grouped_product_counts() -> dict[Any, Callable[..., int]]:
    """Count products of tokens with the experts that they are routed to, which torch's counter leaves out."""

    def count_operations(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * a[0] * a[1] * b[-1]

    operator = getattr(torch.ops.aten, "_grouped_mm", None)
    return {} if operator is None else {operator: count_operations}
