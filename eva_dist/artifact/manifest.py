"""`manifest.json`: what produced the artifact, how each layer ended, and the sha256 of every other file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eva_dist.artifact.facts import FORMAT_VERSION, LayerFacts, Provenance
from eva_dist.artifact.file_names import STATE_DICT_FILE
from eva_dist.artifact.safetensors_header import tensor_hashes
from eva_dist.calibration.controller import PointResult
from eva_dist.config import EvaConfig
from eva_dist.hashing import sha256_of_file
from eva_dist.methods.eva import NAME
from eva_dist.store.snapshot import MANIFEST_FILE, sealed


def status(layers: Sequence[LayerFacts]) -> str:
    """Return `done`, or `not_converged` when any layer still turned."""
    return "done" if all(facts.converged for facts in layers) else "not_converged"


def write_manifest(
    folder: Path, layers: Sequence[LayerFacts], result: PointResult, eva: EvaConfig, provenance: Provenance
) -> dict[str, Any]:
    """Write the manifest over the files that are in `folder`, and return it as it reads back.

    `rank_budget` and `parameter_budget` are those of the uniform adapter; `budget` says which of them was handed out.
    `trainable_parameters` are those of the adapter, A and B. `tensors` has the sha256 of each layer's bytes in the
    state dict, so that one that is loaded without the rest of the file can be verified.
    """
    state = result.state
    stop = state.stop
    manifest = {
        **dataclasses.asdict(provenance),
        "format_version": FORMAT_VERSION,
        "method": NAME,
        "status": status(layers),
        "stop": None if stop is None else stop.value,
        "steps": state.steps,
        "tokens": state.tokens,
        # samples that were forwarded, or would have been, without one token that counts; seldom any
        **({"samples_without_tokens": state.unlabelled} if state.unlabelled else {}),
        "epoch": state.epoch,
        "exhausted": state.exhausted,
        "seconds": result.state.pass_seconds,
        "seconds_by_phase": dict(state.seconds),
        "r": eva.r,
        # sorted keys would change which pattern comes first, and so which one counts
        "rank_pattern": [list(item) for item in eva.rank_pattern.items()],
        "budget": state.plan.budget.value,
        "rank_budget": state.plan.rank_budget,
        "parameter_budget": state.plan.parameter_budget,
        "trainable_parameters": state.plan.parameters(state.ranks),
        "largest_rank": max(facts.rank for facts in layers),
        "layers_converged": state.layers_converged,
        "layers_total": len(layers),
        "layers": {facts.name: _describe_layer(facts, eva.tau, stop.value if stop else "stopped") for facts in layers},
        "input_groups": {facts.group.tap: _describe_group(facts) for facts in layers if facts.name == facts.group.tap},
        "tensors": tensor_hashes(folder / STATE_DICT_FILE),
        "files": {
            path.name: {"sha256": sha256_of_file(path), "size": path.stat().st_size}
            for path in sorted(folder.iterdir())
            if path.name != MANIFEST_FILE
        },
    }
    read_back = sealed(json.loads(json.dumps(manifest, allow_nan=False)))
    text = json.dumps(read_back, sort_keys=True, indent=2) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return read_back


def _describe_layer(facts: LayerFacts, tau: float, stop: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "rank": facts.rank,
        **{key: getattr(facts.layer, key) for key in ("in_features", "out_features", "r", "max_rank", "transposed")},
        "input_group": facts.group.tap,
        "stop_reason": "converged" if facts.converged else stop,
        "updates": facts.known.updates,
        "skipped_steps": facts.known.skipped,
    }
    if not facts.converged:
        below, lowest = facts.shortfall(tau)
        described |= {"components_below_tau": below, "components_judged": facts.group_rank, "lowest_cosine": lowest}
    return described


def _describe_group(facts: LayerFacts) -> dict[str, Any]:
    """Return what the driver knew of the group: `step` is the last that updated it (from 0), -1 for none.

    `converged_to` (see `GroupState`) is there where artifacts were merged that knew it.
    """
    known = {} if facts.known.converged_to is None else {"converged_to": facts.known.converged_to}
    return {
        **known,
        "members": list(facts.group.members),
        "n_components": facts.group.n_components,
        "rows": facts.known.rows,
        "updates": facts.known.updates,
        "skipped_steps": facts.known.skipped,
        "step": facts.known.step,
    }
