"""Run as little of a model as the taps need: the trunk, without head, loss, cache or labels."""

import copy
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from eva_dist.errors import LayerError
from eva_dist.modeling.packing import Layout, agrees, attention_by_segment, can_segment, segments
from eva_dist.modeling.taps import ForwardCut, SelectRows, own_rows, tap_inputs
from eva_dist.modeling.transformers_internals import weights_are_moved_by_hooks

_BLOCKS_OF_LONG_CHECK = 2
"""At least: what leaves the first one's attention enters layers of the second."""

_WRAPPED = {"DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Classes of torch that wrap a model, and what they call it; by name, as torch's compiler takes seconds to import."""


@dataclass(frozen=True)
class Trunk:
    """The part of a model that is called, and the names of the inputs that it takes (None: any)."""

    module: nn.Module
    parameters: frozenset[str] | None = None
    drops: frozenset[str] = frozenset({"labels"})

    @cached_property
    def may_cut(self) -> bool:
        """Whether a forward may be left in the middle: accelerate's hooks, and FSDP2's, would leave weights around."""
        return not any(
            weights_are_moved_by_hooks(module) or isinstance(module, FSDPModule) for module in self.module.modules()
        )

    def run(self, inputs: Mapping[str, Any]) -> None:
        """Forward `inputs`, less what the trunk does not know and what only a loss needs."""
        known = {key: value for key, value in inputs.items() if key not in self.drops}
        if self.parameters is not None:
            known = {key: value for key, value in known.items() if key in self.parameters}
        # A key-value cache is never read here; say so where the model understands it.
        if "use_cache" in inspect.signature(self.module.forward).parameters:
            known.setdefault("use_cache", False)
        self.module(**known)


def find_trunk(model: nn.Module, tapped: Iterable[str]) -> Trunk:
    """Return the smallest module that a transformers model exposes and that holds every tapped layer.

    Unwraps `DistributedDataParallel`, `torch.compile` and `PeftModel`; falls back to the whole model when a
    tapped layer lies in the head. An encoder-decoder runs whole and keeps its labels: it
    makes its decoder's inputs from them.
    """
    modules = [model.get_submodule(name) for name in tapped]
    inner = _unwrap_adapter(model)
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
class Placed:
    """A minibatch as it is forwarded: on the device, in its layout.

    `kept_N` are the places, counted through the rows, of the tokens that count (None: all do),
    `counts` how many each sample has, in the order of their rows; `lengths` are the samples'
    when they lie in one row.
    """

    inputs: dict[str, Tensor]
    shape: tuple[int, int]
    kept_N: Tensor | None
    counts: tuple[int, ...]
    lengths: tuple[int, ...] | None = None


def place(minibatch: Mapping[str, Tensor], keep_BT: Tensor, layout: Layout, device: torch.device) -> Placed:
    """Lay out a padded minibatch (`input_ids` and perhaps `attention_mask`, `[B, T]`) and move it to the device.

    Rows come in the same order in every layout: sample by sample.
    """
    inputs = {key: value for key, value in minibatch.items() if key != "labels"}
    shape: tuple[int, int] = tuple(inputs["input_ids"].shape)  # type: ignore[assignment]
    counts = tuple(keep_BT.sum(1).tolist())
    lengths = None
    if layout is not Layout.padded:
        real_BT = real_tokens(minibatch)
        lengths = tuple(length for length in real_BT.sum(1).tolist() if length)
        keep_BT = keep_BT[real_BT][None]
        position_BT = real_BT.cumsum(1) - 1
        inputs = {"input_ids": inputs["input_ids"][real_BT][None], "position_ids": position_BT[real_BT][None]}
        if layout is Layout.segments:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        shape = (1, sum(lengths))
    everything = bool(keep_BT.all())
    return Placed(
        {key: value.to(device) for key, value in inputs.items()},
        shape,
        None if everything else keep_BT.flatten().nonzero()[:, 0].to(device),  # found here, once, not by every tap
        counts,
        lengths,
    )


def forward_placed(trunk: "Trunk", placed: Placed) -> None:
    """Forward a placed minibatch."""
    with segments(placed.lengths) if placed.lengths is not None else nullcontext():
        trunk.run(placed.inputs)


@dataclass(frozen=True)
class TokenForward:
    """How a job's minibatches (`input_ids`, `attention_mask`, maybe `labels`, `[B, T]`) meet the model."""

    trunk: Trunk
    device: torch.device
    use_label_mask: bool
    label_mask_value: int
    layout: Layout = Layout.padded

    @property
    def may_cut(self) -> bool:
        """Whether a forward may be left as soon as every tap has its rows."""
        return self.trunk.may_cut

    def prepare(self, minibatch: Mapping[str, Tensor]) -> Placed:
        """Lay a minibatch out; padding and, with `use_label_mask`, tokens masked by their label do not count."""
        keep_BT = real_tokens(minibatch)
        if self.use_label_mask and "labels" in minibatch:
            keep_BT = keep_BT & (minibatch["labels"] != self.label_mask_value)
        return place(minibatch, keep_BT, self.layout, self.device)

    def run(self, prepared: Placed) -> None:
        """Forward one minibatch, without labels."""
        forward_placed(self.trunk, prepared)

    def select(self, prepared: Placed) -> SelectRows:
        """Return the function that picks the rows that count."""
        return lambda arguments, name: select_tokens(arguments[0], prepared, name)

    def counts(self, prepared: Placed) -> tuple[int, ...]:
        """Return how many rows of each sample count."""
        return prepared.counts


def find_layout(
    model: nn.Module,
    layers: Sequence[str],
    forward: TokenForward,
    minibatch: Mapping[str, Tensor],
    row_tokens: int,
    all_agree: Callable[[bool], bool] = bool,
) -> Layout:
    """Return the best layout in which every layer of `model` receives what it does in the padded one.

    Three short pieces of the minibatch's text, of different lengths, are forwarded in each.
    As some models look at the length of the whole row, the first blocks must also agree on
    pieces that make up `row_tokens`, the longest row there will be: the same three again and again. Padded,
    each piece has a row of its own, so that one forward of the three tells what all of them receive.
    Workers that hold a model together take a layout that holds for all of them (`all_agree`): each verdict
    decides what is forwarded next.
    """
    most = int(real_tokens(minibatch).sum(1).max())  # no piece is longer than a sample may be
    short = _sample_pieces(minibatch, [min(length, most) for length in (16, 48, 32)])
    three = _sample_pieces(minibatch, [min(length, most) for length in (44, 48, 46)])
    times = -(-row_tokens // int(three["attention_mask"].sum()))
    long = {name: tensor.repeat(times, 1) for name, tensor in three.items()}
    first = _first_blocks(forward.trunk.module, layers)

    def enter(laid: Layout, inside: Sequence[str], pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return entering(model, inside, replace(forward, layout=laid), pieces)

    def enter_long(laid: Layout) -> dict[str, Tensor]:
        if laid is not Layout.padded:
            return enter(laid, first, long)
        return {name: rows_TD.repeat(times, 1) for name, rows_TD in enter(laid, first, three).items()}

    def holds(layout: Layout) -> bool:
        return all_agree(agrees(layout, lambda laid: enter(laid, layers, short))) and all_agree(
            agrees(layout, enter_long)
        )

    allowed = [Layout.segments] if can_segment(forward.trunk.module) else []
    return next((layout for layout in [*allowed, Layout.packed] if holds(layout)), Layout.padded)


def entering(
    model: nn.Module, layers: Sequence[str], forward: TokenForward, minibatch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what enters each layer that is reached; the forward is left when all of them are, if it may be."""
    rows: dict[str, list[Tensor]] = defaultdict(list)
    prepared = forward.prepare(minibatch)
    select = forward.select(prepared)

    def take(name: str, arguments: Any) -> None:
        rows[name].append(own_rows(select(arguments, name), arguments))
        if forward.may_cut and len(rows) == len(layers):
            raise ForwardCut

    by_segment = attention_by_segment(forward.trunk.module, forward.layout is Layout.segments)
    with torch.no_grad(), by_segment, tap_inputs(model, layers, take), suppress(ForwardCut):
        forward.run(prepared)
    return {name: torch.cat(calls) for name, calls in rows.items()}


def _first_blocks(module: nn.Module, layers: Sequence[str]) -> Sequence[str]:
    """Return the layers up to the block by which every kind has been met that the config tells apart, in lists."""
    config = module.config.get_text_config() if isinstance(module, PreTrainedModel) else None
    blocks = getattr(config, "num_hidden_layers", 0)
    of_config = vars(config).values() if config else ()
    lists = [kinds for kinds in of_config if isinstance(kinds, list) and len(kinds) == blocks > 0]
    last_new = max((kinds.index(kind) + 1 for kinds in lists for kind in kinds), default=0)
    count = max(last_new, _BLOCKS_OF_LONG_CHECK)
    numbers = [re.search(r"\.(\d+)\.", name) for name in layers]
    return [name for name, number in zip(layers, numbers, strict=True) if number and int(number[1]) < count] or layers


def _sample_pieces(minibatch: Mapping[str, Tensor], lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return pieces of the minibatch's text, of these lengths, padded, without labels."""
    text = minibatch["input_ids"][real_tokens(minibatch)]
    pieces = text.repeat(-(-sum(lengths) // len(text)))[: sum(lengths)].split(lengths)
    mask_BT = pad_sequence([torch.ones_like(ids_T) for ids_T in pieces], batch_first=True)
    return {"input_ids": pad_sequence(pieces, batch_first=True), "attention_mask": mask_BT}


def real_tokens(minibatch: Mapping[str, Tensor]) -> Tensor:
    """Return `[B, T]`: which tokens are not padding; all of them without an attention mask."""
    mask_BT = minibatch.get("attention_mask")
    return torch.ones_like(minibatch["input_ids"]).bool() if mask_BT is None else mask_BT.bool()


def is_right_padded(minibatch: Mapping[str, Any]) -> bool:
    """Tell whether this is token ids, a mask and labels and no more, with padding, if any, at the right."""
    if not {"input_ids"} <= minibatch.keys() <= {"input_ids", "attention_mask", "labels"}:
        return False
    ids_BT, mask_BT = minibatch["input_ids"], minibatch.get("attention_mask")
    if not (isinstance(ids_BT, Tensor) and ids_BT.dim() == 2):
        return False
    if mask_BT is None:
        return True
    real_BT = mask_BT.bool()
    return ids_BT.shape == mask_BT.shape and bool((real_BT[:, 1:] <= real_BT[:, :-1]).all() & real_BT.any())


def select_tokens(x: Tensor, placed: Placed, name: str) -> Tensor:
    """Return the rows of a layer's input `[B, T, D]` (or flattened, `[B * T, D]`) that count; a view if all do.

    Raises:
        LayerError: the input has no row a token.
    """
    batch, length = placed.shape
    if x.shape[:-1] == placed.shape or (x.dim() == 2 and x.shape[0] == batch * length):
        rows_TD = x.reshape(batch * length, x.shape[-1])
        return rows_TD if placed.kept_N is None else rows_TD.index_select(0, placed.kept_N.to(x.device))
    raise LayerError(
        f"inputs of layer {name} have shape {tuple(x.shape)}: not one row for each of the {placed.shape} "
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


def unwrap(model: nn.Module) -> tuple[nn.Module, str]:
    """Return what `DistributedDataParallel` and `torch.compile` are wrapped around, and how names in `model` begin."""
    prefix = ""
    while (attribute := _WRAPPED.get(type(model).__name__)) is not None:
        model, prefix = getattr(model, attribute), f"{prefix}{attribute}."
    return model, prefix


def uncompiled() -> AbstractContextManager[Any]:
    """Let whatever was compiled run as it was written: a graph knows no taps, and is not left in the middle."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and to import it takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _unwrap_adapter(model: nn.Module) -> nn.Module:
    """Return the base model, whatever order it was wrapped in."""
    inner, _ = unwrap(model)
    get_base: Callable[[], nn.Module] | None = getattr(inner, "get_base_model", None)
    return unwrap(get_base())[0] if get_base is not None else inner
