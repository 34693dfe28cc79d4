"""A PEFT adapter of one rank in every layer, for engines that read `r` and `lora_alpha` of it and nothing else.

LoRA adds `scale * B A` to a layer, `scale = alpha / r` of that layer (`alpha / sqrt(r)` with rsLoRA). EVA gives
each layer a rank of its own, so `adapter_config.json` has a `rank_pattern` and an `alpha_pattern`. There are two ways
to one rank N and one alpha:

- **padded**: A gets zero rows and B zero columns. `B A` stays what it is, for any B, so outputs are those of the
  adapter that was padded, and so is its training: where a row of A and the column of B are both zero, both
  gradients are, and the pair stays zero.
- **fixed**: every layer gets the N leading components of its input, whatever EVA would have handed out; B is zero.

All layers then have one scale, that of most of them. Where a layer's own scale was another one, their ratio goes
into **A**: into B, which is zero until it is trained, it would be lost. The layer's function of B is then the same,
and so is the gradient of B; an optimizer moves A in other units there, so that training is near to the
original's, not equal.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from eva_dist.artifact.file_names import ADAPTER_CONFIG_FILE, ADAPTER_PREFIX
from eva_dist.artifact.restore import Stored
from eva_dist.errors import ConfigError, IntegrityError
from eva_dist.methods.eva import adapter_rows
from eva_dist.modeling.peft_rules import layer_r

_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_BESIDE = ".lora_magnitude_vector"
"""Of DoRA; it does not depend on the rank."""
_LARGEST_RANK = 1 << 20
_LARGEST_ALPHA = 1e12
_LONGEST_PATTERN = 1000
_REMEDY = "get the adapter again, or save it anew with PEFT"


@dataclass(frozen=True)
class LoraLayer:
    """One layer of an adapter: `a_RD` `[rank, in_features]`, `b_OR` `[out_features, rank]`, and the factor of `B A`."""

    a_RD: Tensor
    b_OR: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Rank of the layer."""
        return self.a_RD.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An adapter: its `adapter_config.json`, its layers by their names in the base model, and its other tensors."""

    config: Mapping[str, Any]
    layers: Mapping[str, LoraLayer]
    others: Mapping[str, Tensor]

    @property
    def largest_rank(self) -> int:
        """Largest rank of a layer, 0 if there is none."""
        return max((layer.rank for layer in self.layers.values()), default=0)


@dataclass(frozen=True)
class Uniform:
    """An adapter of one rank.

    Attributes:
        config: its `adapter_config.json`, without patterns.
        tensors: its `adapter_model.safetensors`.
        rank: of every layer.
        alpha: `lora_alpha` of every layer.
        scale: `alpha / rank`.
        folded: layers whose own scale was another one: the ratio is in their A.
        added: layers that carried no adapter and get one that is zero.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    rank: int
    alpha: float
    scale: float
    folded: tuple[str, ...]
    added: tuple[str, ...]


def check_adapter_config(config: Mapping[str, Any], where: object = None) -> None:
    """Refuse a config whose settings are none; keys that are not there, or null, are PEFT's to fill in.

    Args:
        config: what is in the file.
        where: of the adapter, for the message.

    Raises:
        IntegrityError: a setting that we compute with has another type or range; the message names it and its value.
    """
    of = ADAPTER_CONFIG_FILE if where is None else f"{ADAPTER_CONFIG_FILE} of {where}"
    if not isinstance(config.get("peft_type"), str):
        raise IntegrityError(
            f"{of}: peft_type={_short_repr(config.get('peft_type'))} must be a text, e.g. LORA; {_REMEDY}"
        )
    for key, (fits, wanted) in _SETTINGS.items():
        if (value := config.get(key)) is not None and not fits(value):
            raise IntegrityError(f"{of}: {key}={_short_repr(value)} must be {wanted}; {_REMEDY}")
    for key, (fits, wanted) in _PATTERNS.items():
        if (patterns := config.get(key)) is None:
            continue
        if not isinstance(patterns, dict):
            raise IntegrityError(f"{of}: {key}={_short_repr(patterns)} must be a mapping; {_REMEDY}")
        for pattern, value in patterns.items():
            if not _is_pattern(pattern):
                raise IntegrityError(
                    f"{of}: {key} has the key {_short_repr(pattern)}, must be a regular one; {_REMEDY}"
                )
            if not fits(value):
                raise IntegrityError(
                    f"{of}: {key}.{_short_repr(pattern)}={_short_repr(value)} must be {wanted}; {_REMEDY}"
                )


def read_adapter(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """Return an adapter as PEFT would load it.

    Raises:
        ConfigError: it adapts more than weights of linear layers.
        IntegrityError: its settings are none, or its tensors are not pairs of A and B that fit each other.
    """
    check_adapter_config(config)
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"peft_type={config.get('peft_type')} must be LORA: only LoRA has a rank to make uniform")
    if config.get("lora_alpha") is None:
        raise IntegrityError("adapter_config.json has no lora_alpha; save the adapter anew with PEFT")
    halves: dict[str, dict[str, Tensor]] = {}
    others = {}
    for key, tensor in tensors.items():
        if found := _LORA.fullmatch(key):
            halves.setdefault(found["module"].removeprefix(ADAPTER_PREFIX), {})[found["half"]] = tensor
        elif ".lora_" in key and not key.endswith(_BESIDE):
            raise ConfigError(f"{key} must be A or B of a linear layer; export it as it is: --rank mixed")
        else:
            others[key] = tensor
    layers = {}
    for name, pair in halves.items():
        fits = pair.keys() == {"A", "B"} and all(half.ndim == 2 for half in pair.values())
        if not fits or not 0 < pair["A"].shape[0] == pair["B"].shape[1]:
            raise IntegrityError(f"A and B of {name} do not fit each other; get the adapter again")
        layers[name] = LoraLayer(pair["A"], pair["B"], _scale_of_layer(config, name, pair["A"].shape[0]))
    return Adapter(config, layers, others)


def padded(adapter: Adapter, rank: int | None = None, bare: Mapping[str, tuple[int, int]] | None = None) -> Uniform:
    """Return the adapter with every layer padded with zeros to one rank; its outputs stay what they are.

    Args:
        adapter: of mixed ranks, at init or trained.
        rank: None for the largest rank there is.
        bare: layers that carry no adapter and shall get one that is zero: name to `(in_features, out_features)`.

    Raises:
        ConfigError: `rank` is below the largest one.
    """
    if not adapter.layers:
        raise ConfigError("the adapter has no layer of LoRA, so no rank to pad; export it as it is: --rank mixed")
    needed = adapter.largest_rank
    rank = needed if rank is None else rank
    if rank < needed:
        raise ConfigError(
            f"--rank pad:{rank} must be at least {needed}, the largest rank there is: to pad cuts nothing; "
            f"use --rank pad, or --rank fixed:{rank} for the first {rank} components of every layer"
        )
    layers = {}
    for name, layer in adapter.layers.items():
        more = rank - layer.rank
        layers[name] = LoraLayer(pad(layer.a_RD, (0, 0, 0, more)), pad(layer.b_OR, (0, more)), layer.scale)
    return _with_one_scale(replace(adapter, layers=layers), rank, bare or {})


def fixed(stored: Stored, config: Mapping[str, Any], rank: int) -> Uniform:
    """Return an adapter with the `rank` leading components in every layer and B = 0.

    Its scales follow the artifact's own rule for a layer of that rank: `lora_alpha / r`, whatever rank it got, with
    `adjust_scaling_factors`, else `lora_alpha / rank`.

    Args:
        stored: artifact whose components are used.
        config: its `adapter_config.json`.
        rank: of every layer.

    Raises:
        ConfigError: fewer components than `rank` are stored of a layer.
    """
    plan, eva = stored.result.state.plan, stored.eva
    group_of = {name: group for group in plan.groups for name in group.members}
    layers, bare = {}, {}
    for layer in plan.layers:
        components = stored.result.components[group_of[layer.name].index]
        if not len(components.v_KD):  # it saw no data
            bare[layer.name] = (layer.in_features, layer.out_features)
            continue
        if len(components.v_KD) < rank:
            most = min(len(c.v_KD) for c in stored.result.components.values() if len(c.v_KD))
            raise ConfigError(
                f"--rank fixed:{rank} must be at most {most}: of {layer.name} {len(components.v_KD)} components are "
                f"stored; use --rank fixed:{most}, or compute the artifact again with eva.r * eva.rho >= {rank}"
            )
        a_RD = adapter_rows(components, rank, eva.whiten)
        scale = eva.lora_alpha / (layer.r if eva.adjust_scaling_factors else rank)
        layers[layer.name] = LoraLayer(a_RD, torch.zeros(layer.out_features, rank), scale)
    if not layers:
        raise ConfigError("no layer has a component; the artifact saw no data, so compute it again")
    return _with_one_scale(Adapter({**config, "target_modules": list(layers)}, layers, {}), rank, bare)


def _scale_of_layer(config: Mapping[str, Any], name: str, rank: int) -> float:
    alpha = float(layer_r(name, config["lora_alpha"], config.get("alpha_pattern") or {}))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _with_one_scale(adapter: Adapter, rank: int, bare: Mapping[str, tuple[int, int]]) -> Uniform:
    """Return layers of one rank as an adapter of one alpha."""
    scale = _most_common_scale({name: layer.scale for name, layer in adapter.layers.items()})
    tensors, folded = dict(adapter.others), []
    like = next(iter(adapter.layers.values()))
    for name, layer in adapter.layers.items():
        a_RD = layer.a_RD
        if not math.isclose(layer.scale, scale, rel_tol=1e-12):
            folded.append(name)
            a_RD = (a_RD.double() * (layer.scale / scale)).to(a_RD.dtype)
        tensors |= _pair_tensors(name, a_RD, layer.b_OR)
    added = tuple(name for name in bare if name not in adapter.layers)
    for name in added:
        width, height = bare[name]
        tensors |= _pair_tensors(name, like.a_RD.new_zeros(rank, width), like.b_OR.new_zeros(height, rank))
    alpha = scale * rank
    targets = adapter.config.get("target_modules")
    config = {
        **adapter.config,
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "target_modules": targets if isinstance(targets, str) else sorted({*(targets or ()), *added}),
    }
    return Uniform(config, tensors, rank, alpha, scale, tuple(folded), added)


def _most_common_scale(scales: Mapping[str, float]) -> float:
    """Return the scale that most layers have; of several, the largest."""
    rounded = Counter(float(f"{scale:.12g}") for scale in scales.values())
    usual = max(rounded, key=lambda scale: (rounded[scale], scale))
    return next(scale for scale in scales.values() if float(f"{scale:.12g}") == usual)


def _pair_tensors(name: str, a_RD: Tensor, b_OR: Tensor) -> dict[str, Tensor]:
    return {
        f"{ADAPTER_PREFIX}{name}.lora_A.weight": a_RD.contiguous(),
        f"{ADAPTER_PREFIX}{name}.lora_B.weight": b_OR.contiguous(),
    }


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_RANK


def _is_alpha(value: object) -> bool:
    return type(value) in (int, float) and 0 < value <= _LARGEST_ALPHA and math.isfinite(value)  # type: ignore[operator,arg-type]


def _are_targets(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _is_pattern(text: str) -> bool:
    """Tell whether PEFT could look for it: it is a regular expression there."""
    try:
        re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return len(text) <= _LONGEST_PATTERN


def _short_repr(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # as deep as a parser goes, or a number of 5,000 digits
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:79]}…"


_RANKS_ALLOWED = (_is_rank, f"a whole number in 1..{_LARGEST_RANK}")
_ALPHAS_ALLOWED = (_is_alpha, f"a number above 0, at most {_LARGEST_ALPHA:g}")
_PATTERNS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "rank_pattern": _RANKS_ALLOWED,
    "alpha_pattern": _ALPHAS_ALLOWED,
}
_SETTINGS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "r": _RANKS_ALLOWED,
    "lora_alpha": _ALPHAS_ALLOWED,
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "target_modules": (_are_targets, "a text or a list of texts"),
    "base_model_name_or_path": (lambda value: isinstance(value, str), "a text"),
}
