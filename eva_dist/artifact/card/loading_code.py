"""The card's Python code: run as it stands where the artifact's folder can be reached."""

from collections.abc import Mapping
from keyword import iskeyword
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from eva_dist.artifact.card.auto_classes import auto_class
from eva_dist.artifact.card.front_matter import hub_model
from eva_dist.artifact.facts import Provenance
from eva_dist.config import EvaConfig
from eva_dist.store.artifact_ref import RefKind, parse_artifact_ref


def adapter_code(provenance: Provenance) -> str:
    """Return code that binds `model` to a trainable `PeftModel` of the ready adapter."""
    imports, place = _adapter_place(provenance.url)
    return f"""\
{imports}from peft import PeftModel
from transformers import {_auto_class(provenance)}

base = {_base_model(provenance)}
model = PeftModel.from_pretrained(base, {place}, is_trainable=True)"""


def _adapter_place(url: str) -> tuple[str, str]:
    """Return what to import, and the arguments by which PEFT finds the adapter: a folder, or a name on the Hub."""
    if url.startswith("file://"):
        return "", repr(url2pathname(urlsplit(url).path))
    if "://" not in url:
        return "", repr(url)
    source = parse_artifact_ref(url)
    if source.kind is RefKind.hub and not source.url:
        return "", repr(source.repo_id) + (f", revision={source.revision!r}" if source.revision else "")
    return "import eva_dist\n", f"eva_dist.fetch({url!r})"


def state_dict_code(eva: EvaConfig, provenance: Provenance, fan_in_fan_out: bool) -> str:
    """Return code that binds `model` to a fresh `PeftModel` whose LoRA weights EVA has initialised."""
    pattern = f"    rank_pattern={eva.rank_pattern!r},\n" if eva.rank_pattern else ""
    transposed = "    fan_in_fan_out=True,\n" if fan_in_fan_out else ""
    task = provenance.model.get("task_type")
    return f"""\
import eva_dist
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from transformers import {_auto_class(provenance)}

base = {_base_model(provenance)}
eva_state_dict = eva_dist.load_eva_state_dict({provenance.url!r})
config = LoraConfig(
    r={eva.r!r},
    lora_alpha={eva.lora_alpha!r},
    target_modules=[name.removeprefix("base_model.model.") for name in eva_state_dict],
{pattern}{transposed}    task_type={task!r},
    init_lora_weights="eva",
    eva_config=EvaConfig(
        rho={eva.rho!r},
        tau={eva.tau!r},
        use_label_mask={eva.use_label_mask!r},
        label_mask_value={eva.label_mask_value!r},
        whiten={eva.whiten!r},
        adjust_scaling_factors={eva.adjust_scaling_factors!r},
    ),
)
model = get_peft_model(base, config, low_cpu_mem_usage=True)
initialize_lora_eva_weights(model, eva_state_dict=eva_state_dict)"""


def _auto_class(provenance: Provenance) -> str:
    return auto_class(provenance.model.get("task_type"), provenance.model.get("auto_class"))


def _base_model(provenance: Provenance) -> str:
    """Return the call that loads the base model as the run did, but for code of the model's own.

    Whoever runs the card decides whether to trust that: a manifest may come from anywhere, and so may what was
    derived or copied from it.
    """
    settings = provenance.config.get("model", {})
    overrides = dict(settings.get("config_overrides") or {})
    trusted = bool(overrides.pop("trust_remote_code", None) or settings.get("trust_remote_code"))
    options = {"revision": provenance.model.get("revision"), "gguf_file": settings.get("gguf_file"), **overrides}
    given = [repr(str(provenance.model.get("id", ""))), *_arguments(options)]
    far = provenance.url.startswith(("hf://", "http://", "https://"))
    notes = ["your copy of it"] if far and hub_model(provenance) is None else []
    notes += ["the run had trust_remote_code=True: read the model's code, then add it"] if trusted else []
    return f"{_auto_class(provenance)}.from_pretrained({', '.join(given)})" + "".join(f"  # {note}" for note in notes)


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as Python: what cannot be a keyword stays a text, so that no key becomes code."""
    given = {str(key): value for key, value in options.items() if value is not None}
    odd = {key: value for key, value in given.items() if not key.isidentifier() or iskeyword(key)}
    plain = [f"{key}={value!r}" for key, value in given.items() if key not in odd]
    return [*plain, f"**{odd!r}"] if odd else plain
