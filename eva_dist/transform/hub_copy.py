"""An artifact as it goes to a Hub: the card speaks of where it will be, and nothing names this machine's folders.

The tensors, the tables and the figures go as they are, and so does the fingerprint, which covers none of what changes:
`README.md`, the name of the base model in `adapter_config.json`, and in `manifest.json` names, places, and the hashes
of these files. The same artifact gives the same bytes each time.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from eva_dist.artifact.card.card import write_card
from eva_dist.artifact.card.front_matter import hub_model
from eva_dist.artifact.facts import Provenance, layer_facts
from eva_dist.artifact.file_names import ADAPTER_CONFIG_FILE, CARD_FILE
from eva_dist.artifact.reading import last_part, short_name
from eva_dist.artifact.restore import restore_artifact
from eva_dist.store.snapshot import MANIFEST_FILE, Snapshot, folder_snapshot, read_snapshot, sealed

_NAMES = ("url", "repo_id", "revision", "model", "config", "merged_from")
"""What of the provenance changes; all of it lies in the manifest under its own name."""
_NO_PATHS = ("eva", "solver")
"""Groups of settings where what looks like a path is none, but a regular expression."""


def write_hub_copy(
    folder: Path, to: Path, url: str, repo_id: str, revision: str, base_model: str | None = None
) -> Snapshot:
    """Write the files that change into `to`; return the snapshot of the artifact with them in the others' place.

    Args:
        folder: of a verified artifact.
        to: an empty folder.
        url: where it will be, as `load_eva_state_dict` takes it.
        repo_id: there.
        revision: there.
        base_model: name of the base model on the Hub; None: as the run had it, a folder by its last part alone.

    Raises:
        DerivationError: another version of `eva_dist` wrote it.
        IntegrityError: it contradicts itself.
    """
    before = folder_snapshot(folder)
    stored = restore_artifact(folder, before)
    provenance = _provenance_there(stored.provenance, url, repo_id, revision, base_model)
    write_card(to, layer_facts(stored.result), stored.result, stored.eva, provenance)
    config = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = provenance.model.get("id", "")
    (to / ADAPTER_CONFIG_FILE).write_text(_as_json(config), encoding="utf-8")
    changed = {}
    for name in (CARD_FILE, ADAPTER_CONFIG_FILE):
        written = (to / name).read_bytes()
        changed[name] = {"sha256": hashlib.sha256(written).hexdigest(), "size": len(written)}
    manifest = before.manifest | {name: getattr(provenance, name) for name in _NAMES if name in before.manifest}
    content = (_as_json(sealed(manifest | {"files": before.manifest["files"] | changed})) + "\n").encode()
    (to / MANIFEST_FILE).write_bytes(content)
    return read_snapshot(content, before.fingerprint)


def _provenance_there(before: Provenance, url: str, repo_id: str, revision: str, base_model: str | None) -> Provenance:
    on_hub = base_model or hub_model(before)
    name = on_hub or last_part(str(before.model.get("id", "")))
    config = {key: group if key in _NO_PATHS else _without_folders(group) for key, group in before.config.items()}
    config |= {
        "store": {"url": url},
        "artifact": {"repo_id": repo_id, "revision": revision, "overwrite": False},
        "model": config.get("model", {}) | {"name_or_path": name},
    }
    if "cluster" in config:
        config["cluster"] = config["cluster"] | {"address": None}
    model = before.model | {"id": name} | ({"hub_id": base_model} if base_model else {})
    return replace(
        before,
        url=url,
        repo_id=repo_id,
        revision=revision,
        model=model,
        config=config,
        merged_from=_without_folders(before.merged_from),
    )


def _without_folders(value: Any) -> Any:
    """Return settings with paths cut to their last part: they say nothing elsewhere, and more than they should."""
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return short_name(value) if isinstance(value, str) else value


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False)
