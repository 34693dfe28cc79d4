"""Small artifacts made by hand: real files, no model, no figures; in folders and in stores."""

from pathlib import Path
from typing import Any

from eva_dist.artifact.card.card import write_card
from eva_dist.artifact.facts import Provenance, layer_facts
from eva_dist.artifact.manifest import write_manifest
from eva_dist.artifact.tables import write_tables
from eva_dist.artifact.write import write_adapter, write_tensors
from eva_dist.hashing import fingerprint
from eva_dist.store.store import Store
from tests.artifact.conftest import make_pass
from tests.report.sweeps import KINDS, block_plan, settings, turned


def write_artifact(
    folder: Path,
    angle: float = 0.0,
    kinds: tuple[str, ...] = tuple(KINDS),
    blocks: int = 2,
    model: str = "org/tiny",
    **eva,
) -> dict[str, Any]:
    """Write an artifact into a new folder; `angle` turns every direction by so much, `eva` are settings."""
    folder.mkdir(parents=True)
    config = settings(eva)
    result = make_pass(block_plan(config.eva, blocks, kinds), config.eva, [0.5, 0.95, 0.995])
    result = turned(result, angle) if angle else result
    layers = layer_facts(result)
    decisive = {
        "eva": {key: value for key, value in config.to_dict()["eva"].items() if not isinstance(value, dict)},
        "layers": [[layer.name, layer.layer.r, layer.layer.max_rank] for layer in layers],
        "angle": angle,
        "model": model,
    }
    provenance = Provenance(
        fingerprint=fingerprint(decisive),
        decisive=decisive,
        config=config.to_dict(),
        model={"id": model, "revision": None, "task_type": "CAUSAL_LM"},
        tokenizer={},
        data={"digest": "ef" * 32},
        versions={},
        world_size=1,
        url=folder.as_uri(),
        repo_id="team/tiny",
        revision="own",
        created="2026-01-02T03:04:05+00:00",
    )
    write_tensors(folder, layers, config.eva.whiten)
    write_adapter(folder, layers, config.eva, provenance)
    write_tables(folder, layers, result.state)
    write_card(folder, layers, result, config.eva, provenance)
    return write_manifest(folder, layers, result, config.eva, provenance)


def publish(url: str, folder: Path, name: str) -> str:
    """Publish an artifact's folder as `namespace/name@revision`; return its fingerprint."""
    repo_id, _, revision = name.partition("@")
    return Store(url).publish_folder(folder, repo_id, revision).fingerprint
