"""The one file that imports peft: which layers a `LoraConfig` targets, and PEFT's config file.

PEFT's rules are applied by PEFT itself, to a copy of the module tree that shares every
parameter (so it costs nothing): what `inject_adapter_in_model` wraps is what is targeted.
"""

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import EvaConfig as PeftEvaConfig
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import UNSUPPORTED_LORA_MODULES
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eva_dist.config import EvaConfig
from eva_dist.errors import LayerError
from eva_dist.modeling.transformers_internals import copy_module_tree
from eva_dist.plan import Layer, make_layer

_LINEAR = (nn.Linear, Conv1D)
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""What `PeftModelFor...` of each task trains in full (`modules_to_save`), and so cannot carry LoRA."""


@dataclass(frozen=True)
class Targets:
    """The layers to initialise, in model order, and the targets that EVA cannot serve.

    These are embeddings, convolutions, and weights that are no layer's (experts stacked in one tensor, routers).
    """

    layers: tuple[Layer, ...]
    unsupported: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names of the layers."""
        return [layer.name for layer in self.layers]


def resolve_targets(model: nn.Module, config: LoraConfig) -> Targets:
    """Return the `nn.Linear` and `Conv1D` modules of a base model that `config` targets.

    Works on real, meta and quantised parameters alike; the model is left as it was.

    Raises:
        LayerError: nothing matches, or `r` does not fit a layer.
    """
    probe = copy.copy(config)
    probe.init_lora_weights = False
    probe.eva_config = None
    probe.modules_to_save = [*(config.modules_to_save or ()), *_HEADS.get(config.task_type or "", ())]
    # The copy shares all tensors, so what injection does to them is taken back.
    with requires_grad_kept([*model.parameters(), *model.buffers()]):
        skeleton = copy_module_tree(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                inject_adapter_in_model(probe, skeleton, low_cpu_mem_usage=True)
        except (ValueError, re.error) as error:
            raise LayerError(
                f"eva.target_modules={_as_given(config.target_modules)} "
                f"(exclude_modules={_as_given(config.exclude_modules)}) does not fit {type(model).__name__}: {error}; "
                f"its linear layers end in {', '.join(_linear_kinds(model))}"
            ) from error
        wrapped = _lora_layers(skeleton)
    return _split_targets(wrapped, config)


def resolve_peft_model_targets(model: nn.Module, config: LoraConfig, adapter_name: str) -> Targets:
    """Return the layers of a `PeftModel` that carry this adapter, by their names in it (`base_model.model.…`)."""
    carriers = {name: module for name, module in _lora_layers(model).items() if adapter_name in module.r}
    return _split_targets(carriers, config)


def refuse_idle_patterns(rank_pattern: Mapping[str, int], targets: Targets) -> None:
    """Raise `LayerError` for a pattern that names no target layer: PEFT would pass over it in silence."""
    for pattern in rank_pattern:
        if not any(get_pattern_key([pattern], layer.name) == pattern for layer in targets.layers):
            raise LayerError(
                f"eva.rank_pattern.{pattern} names none of the {len(targets.layers)} target layers; "
                f"they are like {', '.join(layer.name for layer in targets.layers[:3])}"
            )


def layer_r(name: str, r: int, rank_pattern: Mapping[str, int]) -> int:
    """Return the rank that PEFT gives a layer before any redistribution: the first pattern that fits it, else `r`."""
    return rank_pattern.get(get_pattern_key(list(rank_pattern), name), r)


def is_targeted(name: str, eva: EvaConfig) -> bool:
    """Tell whether PEFT, by the name alone, would target this layer."""
    return bool(check_target_module_exists(lora_config(eva), name))


def lora_config(eva: EvaConfig, task_type: str | None = None, **changes: Any) -> LoraConfig:
    """Return the `LoraConfig` that these settings describe."""
    settings: dict[str, Any] = {
        "r": eva.r,
        "lora_alpha": eva.lora_alpha,
        "target_modules": eva.target_modules,
        "exclude_modules": eva.exclude_modules,
        "rank_pattern": dict(eva.rank_pattern),
        "task_type": task_type,
        "init_lora_weights": "eva",
        "eva_config": PeftEvaConfig(
            rho=eva.rho,
            tau=eva.tau,
            use_label_mask=eva.use_label_mask,
            label_mask_value=eva.label_mask_value,
            whiten=eva.whiten,
            adjust_scaling_factors=eva.adjust_scaling_factors,
        ),
    }
    return LoraConfig(**(settings | changes))


def write_adapter_config(folder: Path, eva: EvaConfig, task_type: str | None, **changes: Any) -> None:
    """Write PEFT's `adapter_config.json` for an adapter whose ranks EVA has handed out.

    `changes` are of `LoraConfig`: the base model, and targets and patterns by those ranks. `fan_in_fan_out` is true
    when every target is a `Conv1D`; with it PEFT loads without a warning.
    """
    lora_config(eva, task_type, exclude_modules=None, inference_mode=True, **changes).save_pretrained(str(folder))


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _split_targets(wrapped: Mapping[str, Any], config: LoraConfig) -> Targets:
    assert config.eva_config is not None
    patterns = config.rank_pattern or {}
    layers, unsupported = [], []
    for name, module in wrapped.items():
        base = module.get_base_layer()
        if isinstance(module, (*UNSUPPORTED_LORA_MODULES, ParamWrapper)):
            if not isinstance(wrapped.get(name.rpartition(".")[0]), ParamWrapper):  # two weights of one module
                unsupported.append(name)
            continue
        r = layer_r(name, config.r, patterns)
        sizes = int(module.in_features), int(module.out_features)
        layers.append(make_layer(name, *sizes, int(r), float(config.eva_config.rho), isinstance(base, Conv1D)))
    return Targets(tuple(layers), tuple(unsupported))


@contextmanager
def requires_grad_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """When the context closes, have tensors require a gradient, or not, as they did when it was opened."""
    flags = [(tensor, tensor.requires_grad) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, flag in flags:
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)


def _as_given(names: Any) -> str:
    """Return the names as they were given; PEFT turns lists into sets."""
    return repr(sorted(names) if isinstance(names, set) else names)


def _linear_kinds(model: nn.Module) -> list[str]:
    """Return the last name parts of the model's linear layers, in model order, once each."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, _LINEAR)))
