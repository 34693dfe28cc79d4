"""The one file that imports peft: which layers a `LoraConfig` targets, and PEFT's config file.

PEFT's rules are applied by PEFT itself, to a copy of the module tree that shares every
parameter (so it costs nothing): what `inject_adapter_in_model` wraps is what is targeted.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import EvaConfig as PeftEvaConfig
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import UNSUPPORTED_LORA_MODULES
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from eva_dist.config import EvaConfig
from eva_dist.errors import LayerError
from eva_dist.plan import Layer, make_layer

_LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class Targets:
    """The layers to initialise, in model order, and the targets that EVA cannot serve (embeddings, convolutions)."""

    layers: tuple[Layer, ...]
    unsupported: tuple[str, ...]


def resolve_targets(model: nn.Module, config: LoraConfig) -> Targets:
    """Return the `nn.Linear` and `Conv1D` modules of a base model that `config` targets.

    Works on real, meta and quantised parameters alike; the model is left as it was.

    Raises:
        LayerError: nothing matches, or `r` does not fit a layer.
    """
    probe = copy.copy(config)
    probe.init_lora_weights = False
    probe.eva_config = None
    with _shared_copy(model) as skeleton:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                inject_adapter_in_model(probe, skeleton, low_cpu_mem_usage=True)
        except ValueError as error:
            raise LayerError(
                f"eva.target_modules={config.target_modules!r} (exclude_modules={config.exclude_modules!r}) does not fit "
                f"{type(model).__name__}: {error}; its linear layers end in {', '.join(_linear_kinds(model))}"
            ) from error
        wrapped = {name: module for name, module in skeleton.named_modules() if isinstance(module, LoraLayer)}
    return _split(wrapped, config)


def resolve_peft_model_targets(model: nn.Module, config: LoraConfig) -> Targets:
    """Return the layers of a `PeftModel` that carry LoRA, by their names in it (`base_model.model.…`)."""
    return _split({name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}, config)


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


def write_adapter_config(
    folder: Path,
    eva: EvaConfig,
    task_type: str | None,
    base_model_name_or_path: str,
    revision: str | None,
    target_modules: list[str],
    rank_pattern: Mapping[str, int],
    alpha_pattern: Mapping[str, float],
) -> None:
    """Write PEFT's `adapter_config.json` for an adapter whose ranks EVA has handed out."""
    config = lora_config(
        eva,
        task_type,
        target_modules=list(target_modules),
        exclude_modules=None,
        rank_pattern=dict(rank_pattern),
        alpha_pattern=dict(alpha_pattern),
        base_model_name_or_path=base_model_name_or_path,
        revision=revision,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))


def _split(wrapped: Mapping[str, nn.Module], config: LoraConfig) -> Targets:
    assert config.eva_config is not None
    layers, unsupported = [], []
    for name, module in wrapped.items():
        base = module.get_base_layer()  # type: ignore[operator]
        if isinstance(module, UNSUPPORTED_LORA_MODULES) or not isinstance(base, _LINEAR):
            unsupported.append(name)
            continue
        r = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), name), config.r)
        rho = config.eva_config.rho
        layers.append(make_layer(name, int(module.in_features), int(module.out_features), int(r), float(rho)))  # type: ignore[arg-type]
    return Targets(tuple(layers), tuple(unsupported))


@contextmanager
def _shared_copy(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy of the module tree that shares all tensors; restore what injection does to them."""
    tensors = [*model.parameters(), *model.buffers()]
    requires_grad = [tensor.requires_grad for tensor in tensors]
    try:
        yield copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    finally:
        for tensor, flag in zip(tensors, requires_grad, strict=True):
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)


def _linear_kinds(model: nn.Module) -> list[str]:
    """Return the last name parts of the model's linear layers, in model order, once each."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, _LINEAR)))
