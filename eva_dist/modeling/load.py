"""Load the part of a model whose activations EVA needs, and name its layers as PEFT will.

Layers are named in the *base* model, the one that `PeftModel` will wrap
(`LlamaForCausalLM`: `model.layers.0…`). What runs is its trunk alone (`LlamaModel`:
`layers.0…`), so no language-model head and no loss; `Architecture.prefix` is the
difference. Only a target outside the trunk makes the whole base model run.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import extract_commit_hash

from eva_dist.config import Dtype, ModelConfig, Task
from eva_dist.errors import ConfigError
from eva_dist.hashing import sha256_of_file
from eva_dist.modeling.heads import TASKS, auto_class, find_task, is_multimodal
from eva_dist.modeling.shard import Sharding, load_shard, refuse_unshardable, units

_log = logging.getLogger(__name__)

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
_LOADS_SOMETHING_ELSE = ("adapter_kwargs", "config", "state_dict", "subfolder")
"""Keywords of `from_pretrained` that are no part of a config: with them other weights are run than those we hash."""


@dataclass(frozen=True)
class Architecture:
    """A model without weights: its config, its task, and its base model on the meta device."""

    config: PreTrainedConfig
    task: Task
    skeleton: nn.Module

    @property
    def auto_class(self) -> Any:
        """The auto class of transformers that loads the base model."""
        return auto_class(self.task, self.config)

    def prefix(self, layers: Iterable[str]) -> str:
        """Return what to strip from base-model names to get trunk names; empty if a layer lies outside the trunk."""
        trunk = getattr(self.skeleton, "base_model_prefix", "")
        if not trunk or getattr(self.skeleton, trunk, None) is None or is_multimodal(self.auto_class):
            return ""  # what `AutoModel` gives of a model with several towers need not be what lies under the prefix
        return f"{trunk}." if all(name.startswith(f"{trunk}.") for name in layers) else ""


def read_architecture(model: ModelConfig) -> Architecture:
    """Read the model's config and build its base model without weights.

    Raises:
        ConfigError: no such model, or a task that it does not have.
    """
    _refuse_adapter(model)
    config = _read_config(model)
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    if any(getattr(part, "is_encoder_decoder", False) for part in parts):
        raise ConfigError(
            f"model.name_or_path={model.name_or_path} is an encoder-decoder ({config.model_type}), which the job "
            "cannot feed; call eva_dist.get_eva_state_dict with your own dataloader"
        )
    task = find_task(model.task, config, f"model.name_or_path={model.name_or_path}")
    try:
        skeleton = _without_weights(auto_class(task, config), config, model)
    except ValueError as error:
        allowed = ", ".join(known.value for known in TASKS)
        raise ConfigError(
            f"model.task={task.value} does not fit {config.model_type} ({_first_line(error)}); one of: {allowed}"
        ) from error
    return Architecture(config, task, skeleton)


def load_model(
    model: ModelConfig, task: Task, prefix: str, device: torch.device, sharding: Sharding | None = None
) -> nn.Module:
    """Load the weights onto `device`, ready for forwards: the trunk if `prefix` is set, else the base model.

    With `sharding`, every worker of the process group calls this, and each reads and holds its shard alone.
    """
    loader = AutoModel if prefix else auto_class(task, _read_config(model))
    dtype = "auto" if model.dtype is Dtype.auto else getattr(torch, model.dtype.value)
    wanted: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, **_source_options(model)}
    with _without_reports():
        if sharding is None:
            loaded, info = loader.from_pretrained(model.name_or_path, **wanted, **model.config_overrides)
            loaded = loaded.to(device)
        else:
            config = _read_config(model)
            empty = _without_weights(loader, config, model)
            assert isinstance(empty, PreTrainedModel)  # `check_shardable` saw to it
            wanted |= {"pretrained_model_name_or_path": model.name_or_path, "config": config}
            loaded, info = load_shard(type(empty), units(empty), sharding, **wanted)
    if info["missing_keys"]:
        _log.warning(
            "model.name_or_path=%s has no weights for %s, which start from random numbers; layers after them see noise",
            model.name_or_path,
            ", ".join(sorted(info["missing_keys"])),
        )
    return loaded.eval().requires_grad_(False)


def check_shardable(model: ModelConfig, architecture: Architecture, prefix: str, shard_size: int) -> None:
    """Raise `ConfigError` if what will be run of the model cannot be held by `shard_size` workers together."""
    if shard_size == 1:
        return
    run = _without_weights(AutoModel, architecture.config, model) if prefix else architecture.skeleton
    refuse_unshardable(run, shard_size, f"{model.gguf_file} cannot be read in slices" if model.gguf_file else "")


def loaded_on_meta(architecture: Architecture, dtype: Dtype, prefix: str) -> nn.Module:
    """Return what `load_model` would load, without weights: on the meta device, in its dtype.

    Where `dtype` is `auto` and the config names none, weights are taken to be float32.
    """
    wanted = architecture.config.dtype if dtype is Dtype.auto else getattr(torch, dtype.value)
    loader = AutoModel if prefix else architecture.auto_class
    with torch.device("meta"):
        model: nn.Module = loader.from_config(copy.deepcopy(architecture.config), dtype=wanted or torch.float32)
    return model.eval().requires_grad_(False)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer.

    Raises:
        ConfigError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(model.name_or_path, **_source_options(model))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.name_or_path={model.name_or_path} holds no tokenizer that can be read ({_first_line(error)}); "
            "save the tokenizer beside the model"
        ) from error


def describe_model(model: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """Return what identifies the weights: for a hub id its commit, for a folder the sha256 of its weight files."""
    config = architecture.config.to_diff_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype"):
        config.pop(volatile, None)
    dtype = str(architecture.config.dtype) if model.dtype is Dtype.auto else model.dtype.value
    return {
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights": _identify_weights(model),
        "dtype": dtype.removeprefix("torch."),
        "task": architecture.task.value,
    }


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what identifies the tokenizer: a hash of its vocabulary, its rules and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    return {"class": type(tokenizer).__name__, "sha256": hashlib.sha256((rules + template).encode()).hexdigest()}


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep transformers' load report and progress bar out of the log; what matters of them is said above."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _without_weights(loader: Any, config: PreTrainedConfig, model: ModelConfig) -> nn.Module:
    with torch.device("meta"):
        skeleton: nn.Module = loader.from_config(config, trust_remote_code=model.trust_remote_code)
    return skeleton


def _source_options(model: ModelConfig) -> dict[str, Any]:
    named = {"revision": model.revision, "gguf_file": model.gguf_file}
    given = {key: name for key, name in named.items() if name is not None}
    return {"trust_remote_code": model.trust_remote_code, **given}


def _read_config(model: ModelConfig) -> PreTrainedConfig:
    misplaced = [key for key in _LOADS_SOMETHING_ELSE if key in model.config_overrides]
    if misplaced:
        raise ConfigError(
            f"model.config_overrides.{misplaced[0]}={model.config_overrides[misplaced[0]]} is no setting of a model's "
            "config; set model.name_or_path to the folder that holds the model"
        )
    try:
        return AutoConfig.from_pretrained(model.name_or_path, **_source_options(model), **model.config_overrides)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.name_or_path={model.name_or_path} is neither a model folder nor a hub id that can be read "
            f"({_first_line(error)}); check the path, model.revision and model.gguf_file"
        ) from error


def _refuse_adapter(model: ModelConfig) -> None:
    """Raise `ConfigError` where an adapter lies: transformers would load it, and its base, without a word."""
    try:
        found = find_adapter_config_file(model.name_or_path, revision=model.revision)
    except (OSError, ValueError):
        return  # no such place: said better by who reads the config
    if found is None:
        return
    if Path(found).with_name("config.json").is_file() or model.gguf_file:
        what = "holds a base model and an adapter: separate them or merge (`merge_and_unload`, then `save_pretrained`)"
    else:
        base = json.loads(Path(found).read_text(encoding="utf-8")).get("base_model_name_or_path")
        what = f"holds an adapter alone; name its base model{f', {base}' if base else ''}"
    raise ConfigError(f"model.name_or_path={model.name_or_path} {what}")


def _weight_files(folder: Path, gguf_file: str | None) -> list[Path]:
    names = [folder / gguf_file] if gguf_file else sorted(f for f in folder.iterdir() if f.suffix in _WEIGHT_SUFFIXES)
    files = [name for name in names if name.is_file()]
    if any(name.suffix == ".safetensors" for name in files):
        files = [name for name in files if name.suffix == ".safetensors"]
    if not files:
        raise ConfigError(
            f"model.name_or_path={folder} holds no weights ({', '.join('*' + s for s in _WEIGHT_SUFFIXES)}); "
            "save the model there, or set model.gguf_file"
        )
    return files


def _identify_weights(model: ModelConfig) -> str:
    """Return the hub commit (and file, where a repository holds several), or the sha256 of a folder's weight files."""
    folder = Path(model.name_or_path)
    if folder.is_dir():
        digest = hashlib.sha256()
        for name in _weight_files(folder, model.gguf_file):
            digest.update(bytes.fromhex(sha256_of_file(name)))
        return f"sha256:{digest.hexdigest()}"
    known = cached_file(model.name_or_path, model.gguf_file or "config.json", revision=model.revision)
    commit = extract_commit_hash(known, None)
    if commit is None:
        raise ConfigError(
            f"model.name_or_path={model.name_or_path} has no commit in the hub's cache; download it again"
        )
    return f"commit:{commit}" + (f":{model.gguf_file}" if model.gguf_file else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
