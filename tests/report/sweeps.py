"""Multirun folders as Hydra and a run leave them, with small artifacts in a store beside them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from eva_dist.artifact.facts import Provenance, layer_facts
from eva_dist.artifact.manifest import write_manifest
from eva_dist.artifact.tables import write_tables
from eva_dist.artifact.write import write_tensors
from eva_dist.calibration.controller import PointResult
from eva_dist.config import Config, DataConfig, EvaConfig, ModelConfig
from eva_dist.numerics.components import Components
from eva_dist.plan import Plan, make_layer, make_plan
from eva_dist.run.outcome import Outcome
from eva_dist.store.store import Store
from tests.artifact.conftest import make_pass

KINDS = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (16, 8), "mlp.down_proj": (24, 16)}
SHARED = {"self_attn.q_proj": "qk", "self_attn.k_proj": "qk"}


def block_plan(eva: EvaConfig, blocks: int = 2, kinds: Sequence[str] = tuple(KINDS)) -> Plan:
    """Blocks of a few layers; q and k share their input."""
    layers = [
        make_layer(f"model.layers.{block}.{kind}", *KINDS[kind], eva.r, eva.rho)
        for block in range(blocks)
        for kind in kinds
    ]
    inputs: dict[str, list[str]] = {}
    for layer in layers:
        block, _, kind = layer.name.removeprefix("model.layers.").partition(".")
        inputs.setdefault(f"{block}.{SHARED.get(kind, kind)}", []).append(layer.name)
    return make_plan(layers, list(inputs.values()))


def turned(result: PointResult, angle: float) -> PointResult:
    """The same pass with every kept direction turned out of its subspace by `angle`, towards directions of its own."""
    components = {}
    for group, known in result.components.items():
        v_KD = known.v_KD.double()
        count = len(v_KD)
        full, _ = torch.linalg.qr(
            torch.cat([v_KD, torch.randn(v_KD.shape, generator=torch.Generator().manual_seed(7))]).T
        )
        outside = full.T[count : 2 * count]
        cosine, sine = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
        moved = cosine * v_KD[: len(outside)] + sine * outside
        components[group] = Components(
            torch.cat([moved, v_KD[len(outside) :]]).float(), known.singular_values_K, known.explained_variance_ratio_K
        )
    return replace(result, components=components)


@dataclass
class Sweep:
    """A multirun folder in the making; each method writes one more point."""

    folder: Path
    store: Store
    count: int = 0
    facts: dict[str, Any] = field(default_factory=lambda: {"id": "org/tiny", "task_type": "CAUSAL_LM"})

    def begun(self, *overrides: str, config: bool = True, **eva: Any) -> Path:
        """A point that Hydra has begun."""
        point = self.folder / str(self.count)
        self.count += 1
        (point / ".hydra").mkdir(parents=True)
        (point / ".hydra/overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
        if config:
            (point / ".hydra/config.yaml").write_text(yaml.safe_dump(settings(eva).to_dict()))
        return point

    def failed(self, kind: str, message: str, *overrides: str, **eva: Any) -> Path:
        point = self.begun(*overrides, **eva)
        (point / "error.json").write_text(json.dumps({"type": kind, "message": message}))
        return point

    def done(
        self, result: PointResult | None = None, *, status: str = "", seconds: float = 2.0, **eva: Any
    ) -> tuple[Path, Path]:
        """A point with its artifact; return the point's folder and the snapshot's."""
        point = self.begun(*(f"eva.{key}={value}" for key, value in eva.items()), **eva)
        config = settings(eva)
        result = result or make_pass(block_plan(config.eva), config.eva, [0.5, 0.95, 0.995])
        plain = (f"{key}{value}" for key, value in eva.items() if isinstance(value, (int, float)))
        revision = "-".join(["point", *plain])
        fingerprint = hashlib.sha256(f"{self.count}{revision}".encode()).hexdigest()
        published = self.store.publish(
            fingerprint,
            "team/tiny",
            revision,
            lambda folder: self._build(folder, result, config, fingerprint, revision),
        )
        manifest = published.manifest
        outcome = Outcome(
            url=published.url,
            repo_id="team/tiny",
            revision=revision,
            fingerprint=fingerprint,
            status=status or manifest["status"],
            steps=manifest["steps"],
            tokens=manifest["tokens"],
            seconds=seconds,
            pass_seconds=manifest["seconds"],
            layers_converged=manifest["layers_converged"],
            layers_total=manifest["layers_total"],
        )
        (point / "result.json").write_text(json.dumps(vars(outcome)))
        return point, self.store.root / "snapshots" / fingerprint

    def _build(self, folder: Path, result: PointResult, config: Config, fingerprint: str, revision: str) -> dict:
        layers = layer_facts(result)
        write_tensors(folder, layers, config.eva.whiten)
        write_tables(folder, layers, result.state)
        provenance = Provenance(
            fingerprint=fingerprint,
            decisive={},
            config=config.to_dict(),
            model=self.facts,
            tokenizer={},
            data={"digest": "ef" * 32},
            versions={},
            world_size=1,
            url=self.store.snapshot_url(fingerprint),
            repo_id="team/tiny",
            revision=revision,
            created="2026-01-02T03:04:05+00:00",
        )
        return write_manifest(folder, layers, result, config.eva, provenance)


def settings(eva: dict[str, Any]) -> Config:
    """The settings of a point; `eva` are those that differ from r=4, rho=2, tau=0.9."""
    return Config(
        ModelConfig(name_or_path="org/tiny"),
        DataConfig(path="words.jsonl"),
        replace(EvaConfig(r=4, rho=2.0, tau=0.9), **eva),
    )
