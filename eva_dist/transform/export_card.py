"""`README.md` of an exported adapter: what it is, what was changed, how to load and serve it. Pure."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.card.front_matter import TAGS

if TYPE_CHECKING:
    from eva_dist.transform.uniform_rank import Uniform

_MOST_LISTED = 10


def export_card(config: Mapping[str, Any], facts: Mapping[str, Any], made: "Uniform | None") -> str:
    """Return the card.

    Args:
        config: of the exported adapter.
        facts: what `eva-dist export` prints.
        made: None for an adapter that was exported as it is.
    """
    sections = [_head_section(config, facts), _changes_section(facts, made), _use_section(config, facts, made)]
    return "\n\n".join(sections) + "\n"


def _head_section(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    base = json.dumps(str(config.get("base_model_name_or_path") or ""))
    origin = f"the artifact `{_as_code(facts['fingerprint'])}`" if facts["fingerprint"] else "a trained adapter"
    tags = "\n".join(f"- {tag}" for tag in TAGS)
    return f"""---
library_name: peft
base_model: {base}
tags:
{tags}
---

# LoRA adapter, {facts["ranks"]}

Written by `eva-dist export --rank {facts["rank_option"]}` (eva_dist {facts["eva_dist"]}) from {origin}
(`{_as_code(facts["source"])}`).
This folder is an adapter for PEFT and for engines that serve it. It is no artifact of `eva_dist`: it has no manifest,
no spectra and no components; those are where it came from."""


def _changes_section(facts: Mapping[str, Any], made: "Uniform | None") -> str:
    if made is None:
        return (
            "## What was changed\n\nNothing: ranks and alphas are those of the source, layer by layer "
            "(`rank_pattern`, `alpha_pattern`)."
        )
    how = (
        "Zero rows were added to A and zero columns to B. The product B A is what it was, and so are outputs. Training "
        "is too: where a row of A and its column of B are both zero, so are both gradients, and they stay zero."
        if facts["rank_option"].startswith("pad")
        else f"Every layer has the first {made.rank} components of its input, whatever EVA would have handed out; B is "
        "zero. That is another adapter than the source's, not the same one in another shape."
    )
    lines = [how, f"Every layer has the scale `lora_alpha / r` = {made.scale:g}."]
    if made.folded:
        lines.append(
            f"{len(made.folded)} layers had another scale in the source ({_name_layers(made.folded)}). The ratio was "
            "multiplied into their A, so outputs are the same for the same B, and so is the first gradient of B; an "
            "optimizer moves A in other units there, so training is near to the source's, not equal."
        )
    if made.added:
        lines.append(
            f"{len(made.added)} layers carried no adapter ({_name_layers(made.added)}): theirs is zero, and stays zero "
            "in training."
        )
    return "## What was changed\n\n" + "\n".join(f"- {line}" for line in lines)


def _use_section(config: Mapping[str, Any], facts: Mapping[str, Any], made: "Uniform | None") -> str:
    largest = facts["largest_rank"]
    patterns = (
        "An engine that reads `r` and `lora_alpha` alone has all there is to read."
        if made is not None
        else "An engine that reads `r` and `lora_alpha` alone may scale layers wrongly, or refuse other ranks than "
        "`r`: export with `--rank pad` for it."
    )
    return f"""## How to use it

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "FOLDER", is_trainable=True)
```

- In vLLM: `--enable-lora --max-lora-rank N`, N the next of 8, 16, 32, 64, ... from {largest} on.
- {patterns}
- B is zero until the adapter has been trained: until then, the model's outputs are those of the base model.
- Do not set `use_rslora`: it divides by sqrt(r), so the scale would be another one."""


def _name_layers(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{_as_code(name)}`" for name in names[:_MOST_LISTED])
    return shown + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")


def _as_code(text: str) -> str:
    """Return text that ends neither a line nor the code that it stands in."""
    return "".join(c if c.isprintable() and c != "`" else "?" for c in text)
