"""The YAML that a Hub reads at the top of a card: names of the Hub alone, none of a machine's folders."""

import json
import re
from typing import Any

from eva_dist.artifact.facts import Provenance

_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][\w.-]{0,94}(?:/[A-Za-z0-9_][\w.-]{0,94})?(?<![.-])", re.ASCII)
_FILE_ENDINGS = (".csv", ".gz", ".json", ".jsonl", ".parquet", ".tsv", ".txt", ".zst")
TAGS = ("eva", "lora", "eva_dist")


def front_matter(provenance: Provenance) -> str:
    """Return the YAML between its lines of dashes."""
    lines = ["---"]
    for key, value in metadata(provenance).items():
        # A JSON string is a YAML string, whatever is in it.
        lines += [f"{key}:", *(f"- {one}" for one in value)] if isinstance(value, list) else [f"{key}: {value}"]
    return "\n".join([*lines, "---"])


def metadata(provenance: Provenance) -> dict[str, Any]:
    """Return the keys, quoted for YAML; language and licence are not ours to tell."""
    base, data = hub_model(provenance), hub_data(provenance)
    return {
        "library_name": "peft",
        **({"base_model": json.dumps(base), "base_model_relation": "adapter"} if base else {}),
        **({"datasets": [json.dumps(name) for name in data]} if data else {}),
        "tags": list(TAGS),
    }


def hub_model(provenance: Provenance) -> str | None:
    """Return the base model's name on the Hub; None if it was a folder, and nobody said which model it is a copy of."""
    if "hub_id" in provenance.model:
        return str(provenance.model["hub_id"])
    name, weights = str(provenance.model.get("id", "")), provenance.model.get("weights", "commit:")
    return name if str(weights).startswith("commit:") and is_hub_id(name) else None


def hub_data(provenance: Provenance) -> list[str]:
    """Return the data sets' names on the Hub; files and folders have none. A merged artifact may have several."""
    names = dict.fromkeys(str(provenance.config.get("data", {}).get("path", "")).split(" + "))
    return [name for name in names if is_hub_id(name) and not name.endswith(_FILE_ENDINGS)]


def is_hub_id(name: str) -> bool:
    """Whether a name could be one on the Hub, `name` or `org/name`: a run makes its data's path absolute."""
    return _HUB_ID.fullmatch(name) is not None
