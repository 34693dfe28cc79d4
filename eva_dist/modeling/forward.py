"""Run as little of a model as the taps need: the trunk, without head, loss, cache or labels."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eva_dist.errors import LayerError
from eva_dist.modeling.taps import SelectRows


@dataclass(frozen=True)
class Trunk:
    """The part of a model that is called, and the names of the inputs that it takes (None: any)."""

    module: nn.Module
    parameters: frozenset[str] | None
    drops: frozenset[str] = frozenset({"labels"})

    def run(self, inputs: Mapping[str, Any]) -> None:
        """Forward `inputs`, less what the trunk does not know and what only a loss needs."""
        known = {key: value for key, value in inputs.items() if key not in self.drops}
        if self.parameters is not None:
            known = {key: value for key, value in known.items() if key in self.parameters}
        self.module(**known, **self._no_cache(known))

    def _no_cache(self, inputs: Mapping[str, Any]) -> dict[str, bool]:
        """A key-value cache is never read here; say so where the model understands it."""
        if "use_cache" in inputs or "use_cache" not in inspect.signature(self.module.forward).parameters:
            return {}
        return {"use_cache": False}


def find_trunk(model: nn.Module, tapped: Iterable[str]) -> Trunk:
    """Return the smallest module that a transformers model exposes and that holds every tapped layer.

    Unwraps `DistributedDataParallel` and `PeftModel`; falls back to the whole model when a
    tapped layer lies in the head. An encoder-decoder runs whole and keeps its labels: it
    makes its decoder's inputs from them.
    """
    modules = [model.get_submodule(name) for name in tapped]
    inner = _unwrap(model)
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        return Trunk(inner, None, drops=frozenset())
    trunk = inner.base_model if isinstance(inner, PreTrainedModel) else inner
    inside = set(trunk.modules())
    if not all(module in inside for module in modules):
        trunk = inner
    signature = inspect.signature(trunk.forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values())
    return Trunk(trunk, None if open_ended else frozenset(signature))


@dataclass(frozen=True)
class TokenForward:
    """How a job's minibatches (`input_ids`, `attention_mask`, maybe `labels`, `[B, T]`) meet the model."""

    device: torch.device
    use_label_mask: bool
    label_mask_value: int

    def run(self, model: nn.Module, minibatch: Mapping[str, Tensor]) -> None:
        """Forward one minibatch, without labels."""
        inputs = {key: value.to(self.device) for key, value in minibatch.items() if key != "labels"}
        Trunk(model, None).run(inputs)

    def select(self, minibatch: Mapping[str, Tensor]) -> SelectRows:
        """Keep the tokens that are neither padding nor, with `use_label_mask`, masked by their label."""
        keep_BT = minibatch["attention_mask"].bool()
        if self.use_label_mask and "labels" in minibatch:
            keep_BT = keep_BT & (minibatch["labels"] != self.label_mask_value)
        keep_BT = keep_BT.to(self.device)
        return lambda arguments, name: select_tokens(arguments[0], keep_BT, name)


def select_tokens(x: Tensor, keep_BT: Tensor, name: str) -> Tensor:
    """Return the rows of a layer's input `[B, T, D]` (or flattened, `[B * T, D]`) where `keep_BT` is true.

    Raises:
        LayerError: the input has no row a token.
    """
    keep_BT = keep_BT.to(x.device)
    if x.shape[:-1] == keep_BT.shape:
        return x[keep_BT]
    if x.dim() == 2 and x.shape[0] == keep_BT.numel():
        return x[keep_BT.flatten()]
    raise LayerError(
        f"inputs of layer {name} have shape {tuple(x.shape)}: not one row for each of the {tuple(keep_BT.shape)} "
        "tokens; leave the layer out with eva.exclude_modules, or use eva_dist.get_eva_state_dict with your own "
        "prepare_layer_inputs_fn"
    )


def move_to_device(value: Any, device: torch.device) -> Any:
    """Return `value` with every tensor in it on `device`: tensors, mappings, sequences, `BatchEncoding`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if hasattr(value, "to"):
        return copy.copy(value).to(device)  # BatchEncoding.to changes the caller's own object
    if isinstance(value, Mapping):
        return {key: move_to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move_to_device(item, device) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(move_to_device(item, device) for item in value)
    return value


def input_device(model: nn.Module) -> torch.device | None:
    """Return where the model's first real parameter lies: where its inputs go. None if it has none."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), None)


def _unwrap(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    get_base: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    return get_base() if get_base is not None else model
