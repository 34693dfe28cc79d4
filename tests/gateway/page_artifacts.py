"""Small artifacts as files, made by hand: the pages read manifests and tables, and no tensor."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eva_dist.store.store import Store

KINDS = {
    "self_attn.q_proj": ("self_attn.q_proj", 576, 576),
    "self_attn.k_proj": ("self_attn.q_proj", 576, 192),
    "mlp.down_proj": ("mlp.down_proj", 1536, 576),
}
"""Module kind to whose input it reads, inputs and outputs."""
COMPONENTS = 8
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def publish(store: Store, repo_id: str = "team/tiny", revision: str = "rho2.0-tau0.99", *, extra: bytes = b"weights",
            tables: bool = True, **changes: Any) -> dict[str, Any]:  # fmt: skip
    """Publish an artifact and return its manifest; see `manifest_of` for the changes."""
    manifest = manifest_of(**changes)
    manifest.setdefault("fingerprint", hashlib.sha256(json.dumps(manifest).encode() + extra).hexdigest())

    def build(folder: Path) -> dict[str, Any]:
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(extra)
        (folder / "eva_state_dict.safetensors").write_bytes(extra[::-1])
        if tables:
            write_tables(folder, manifest)
        manifest["files"] = {path.name: _described(path) for path in sorted(folder.iterdir())}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
        return manifest

    store.publish(str(manifest["fingerprint"]), repo_id, revision, build)
    return manifest


def manifest_of(
    *,
    r: int = 8,
    rho: float = 2.0,
    tau: float = 0.99,
    blocks: int = 3,
    model: Any = "org/smol",
    data: Any = "docs.jsonl",
    rank_shift: int = 0,
    turning: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """Return a manifest as eva_dist writes them.

    `turning` layers did not converge; `changes` replace top-level keys, None takes one away.
    """
    layers = {}
    for block in range(blocks):
        for at, (kind, (input_, inputs, outputs)) in enumerate(KINDS.items()):
            layers[f"model.layers.{block}.{kind}"] = {
                "rank": max(r + (block + at) % 3 - 1 + rank_shift * (at == 0), 0),
                "r": r,
                "max_rank": round(r * rho),
                "in_features": inputs,
                "out_features": outputs,
                "input_group": f"model.layers.{block}.{input_}",
                "stop_reason": "max_steps" if block * 3 + at < turning else "converged",
                "updates": 5 + block,
            }
    eva = {"r": r, "rho": rho, "tau": tau, "whiten": False, "max_steps": 400}
    manifest = {
        "format_version": 2,
        "method": "eva",
        "status": "not_converged" if turning else "done",
        "stop": "max_steps" if turning else "converged",
        "steps": 5 + blocks,
        "tokens": 31021,
        "seconds": 12.5,
        "world_size": 2,
        "created": "2026-01-02T03:04:05+00:00",
        "budget": "ranks",
        "layers": layers,
        "layers_total": len(layers),
        "layers_converged": len(layers) - turning,
        "model": {"id": model, "revision": None, "task_type": "CAUSAL_LM", "weights": "sha256:ab"},
        "tokenizer": {"sha256": "cd" * 32},
        "data": {"digest": "ef" * 32, "samples": 64},
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
        "config": {"eva": eva, "data": {"path": data, "name": None}, "model": {"name_or_path": model}, "solver": {}},
        "decisive": {
            "method": "eva",
            "eva": eva,
            "layers": [[name, r, round(r * rho)] for name in layers],
            "model": {"weights": "sha256:ab", "id": str(model)},
            "tokenizer": {"sha256": "cd" * 32},
            "data": {"digest": "ef" * 32, "path": str(data)},
            "solver": {"name": "subspace", "n_components": 1, "seed": 42},
        },
        "derived_from": None,
    }
    return {key: value for key, value in (manifest | changes).items() if value is not None}


def write_tables(folder: Path, manifest: dict[str, Any]) -> None:
    """Write spectra that fall by half a component, and groups that converge one block after the other."""
    layers = {
        name: layer for name, layer in manifest["layers"].items() if isinstance(layer, dict) and "updates" in layer
    }
    spectrum = [
        {
            "layer": name,
            "component": k,
            "singular_value": 1.0,
            "explained_variance_ratio": 0.4 * 0.5**k,
            "cosine": 0.999,
            "step_converged": layer["updates"] - 1 if layer["stop_reason"] == "converged" else None,
            "kept": k < layer["rank"],
        }
        for name, layer in layers.items()
        for k in range(COMPONENTS)
    ]
    groups = {layer["input_group"]: layer["updates"] for layer in layers.values()}
    convergence = [
        {"step": step, "input_group": group, "components_converged": 0}
        for group, updates in groups.items()
        for step in range(updates)
    ]
    pq.write_table(pa.Table.from_pylist(spectrum), folder / "spectrum.parquet")
    pq.write_table(pa.Table.from_pylist(convergence), folder / "convergence.parquet")


def _described(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
