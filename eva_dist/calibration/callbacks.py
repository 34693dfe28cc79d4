"""PEFT's callbacks, and how the engine forwards with them.

`forward_fn`, `prepare_model_inputs_fn` and `prepare_layer_inputs_fn` mean what they mean in
`peft.tuners.lora.eva` (peft 0.21); the two defaults for language modelling are here.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from eva_dist.errors import LayerError
from eva_dist.modeling.forward import Placed, Trunk, forward_placed, is_right_padded, place, real_tokens, select_tokens
from eva_dist.modeling.packing import Layout
from eva_dist.modeling.peft_rules import LoraConfig
from eva_dist.modeling.taps import SelectRows

ForwardFn = Callable[[nn.Module, Any], Any]
PrepareModelInputsFn = Callable[[Any, LoraConfig], Any]
PrepareLayerInputsFn = Callable[[Any, Any, str], Tensor]


def prepare_model_inputs_fn_language_modeling(model_input: Any, peft_config: LoraConfig) -> Tensor:
    """Return `[T, 2]` indices (sample, position) of the tokens that count: neither padding nor masked by label."""
    if not isinstance(model_input, Mapping):
        raise TypeError(
            f"minibatches of type {type(model_input).__name__} must be mappings with input_ids; "
            "pass your own prepare_model_inputs_fn and forward_fn for anything else"
        )
    if model_input.get("attention_mask") is None and "input_ids" not in model_input:
        raise TypeError(
            f"minibatches with the keys {sorted(model_input)} have neither attention_mask nor input_ids; for data that "
            "are no tokens pass prepare_model_inputs_fn=None and prepare_layer_inputs_fn=None: then every row counts"
        )
    return _counting_tokens(model_input, peft_config).nonzero()


def _counting_tokens(model_input: Mapping[str, Any], peft_config: LoraConfig) -> Tensor:
    mask_BT = real_tokens(model_input)
    eva = peft_config.eva_config
    if eva is not None and eva.use_label_mask and "labels" in model_input:
        mask_BT = mask_BT & (model_input["labels"] != eva.label_mask_value)
    return mask_BT


def prepare_layer_inputs_fn_language_modeling(layer_input: Any, model_input: Tensor, layer_name: str) -> Tensor:
    """Return `[T, in_features]`: the rows of a layer's input at the indices that count."""
    x = _first_tensor(layer_input, layer_name)
    if x.dim() != 1 + model_input.shape[1]:
        raise LayerError(
            f"inputs of layer {layer_name} have shape {tuple(x.shape)}: not one row for each token; "
            "leave the layer out with exclude_modules, or pass your own prepare_layer_inputs_fn for it"
        )
    return x[model_input.to(x.device).T.unbind()]


class LayerFunctions:
    """`prepare_layer_inputs_fn` as given: one function, a mapping by layer name, or None."""

    def __init__(
        self, given: PrepareLayerInputsFn | Mapping[str, PrepareLayerInputsFn] | None, layers: Sequence[str]
    ) -> None:
        self.given = given
        unknown = sorted(set(given) - set(layers)) if isinstance(given, Mapping) else []
        if unknown:
            raise LayerError(
                "prepare_layer_inputs_fn is a mapping but the following module names were not found in the model: "
                f"{unknown}; the target layers are {list(layers[:3])} and so on"
            )

    def __call__(self, layer_input: Any, model_input: Any, name: str) -> Tensor:
        """Return a layer's rows, `[T, in_features]`, by its own function."""
        function = self.given.get(name) if isinstance(self.given, Mapping) else self.given
        rows = _flatten_rows(layer_input, name) if function is None else function(layer_input, model_input, name)
        if rows.dim() != 2:
            raise LayerError(
                f"prepare_layer_inputs_fn returned shape {tuple(rows.shape)} for layer {name}; "
                "it must be 2-d, [tokens, in_features]"
            )
        return rows


@dataclass(frozen=True)
class CallbackForward:
    """PEFT's callbacks as the engine's `Forward`; with the default ones, minibatches of text are packed."""

    model: nn.Module
    config: LoraConfig
    forward_fn: ForwardFn | None
    trunk: Trunk
    prepare_model_inputs_fn: PrepareModelInputsFn | None
    prepare_layer_inputs_fn: LayerFunctions
    layout: Layout = Layout.padded
    longest_row: int = 0

    @property
    def may_cut(self) -> bool:
        """Whether a forward may be left early: never somebody else's `forward_fn`."""
        return self.forward_fn is None and self.trunk.may_cut

    def packable(self, minibatch: Any) -> bool:
        """Tell whether nothing but the padding would be lost by laying the samples end to end."""
        defaults = (
            self.forward_fn is None
            and self.prepare_model_inputs_fn is prepare_model_inputs_fn_language_modeling
            and self.prepare_layer_inputs_fn.given is prepare_layer_inputs_fn_language_modeling
        )
        return defaults and isinstance(minibatch, Mapping) and is_right_padded(minibatch)

    def prepare(self, minibatch: Any) -> Any:
        """Lay the minibatch out without its padding, or pair it with what `prepare_model_inputs_fn` makes of it."""
        fits = self.layout is not Layout.padded and self.packable(minibatch)
        if fits and minibatch["input_ids"].numel() <= self.longest_row:  # up to there the layout has been checked
            device = minibatch["input_ids"].device
            return place(minibatch, _counting_tokens(minibatch, self.config), self.layout, device)
        if self.prepare_model_inputs_fn is None:
            return minibatch, copy.copy(minibatch)
        return minibatch, self.prepare_model_inputs_fn(minibatch, self.config)

    def run(self, prepared: Any) -> None:
        """Forward one minibatch."""
        if isinstance(prepared, Placed):
            forward_placed(self.trunk, prepared)
            return
        minibatch, _ = prepared
        if self.forward_fn is not None:
            self.forward_fn(self.model, minibatch)
        elif isinstance(minibatch, Mapping):
            self.trunk.run(minibatch)
        else:
            raise TypeError(f"minibatches of type {type(minibatch).__name__} are no mappings: pass a forward_fn")

    def select(self, prepared: Any) -> SelectRows:
        """Return the function that picks the rows that count."""
        if isinstance(prepared, Placed):
            return lambda arguments, name: select_tokens(_first_tensor(arguments, name), prepared, name)
        return lambda arguments, name: self.prepare_layer_inputs_fn(arguments, prepared[1], name)

    def counts(self, prepared: Any) -> Sequence[int]:
        """Never asked: a minibatch of a dataloader is one step."""
        raise AssertionError("a minibatch of a dataloader is one step")


def _first_tensor(layer_input: Any, name: str) -> Tensor:
    x = layer_input[0] if isinstance(layer_input, (tuple, list)) else layer_input
    if not isinstance(x, Tensor):
        raise TypeError(f"unsupported input type {type(x)} in layer {name}; pass your own prepare_layer_inputs_fn")
    return x


def _flatten_rows(layer_input: Any, name: str) -> Tensor:
    x = _first_tensor(layer_input, name)
    return x.reshape(-1, x.shape[-1])
