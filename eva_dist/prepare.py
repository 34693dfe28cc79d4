"""A run before its first step: all that needs neither weights nor actors.

Whatever is wrong with the settings, the model's config, the data or the store is said here,
before anything starts.
"""

import logging
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eva_dist import __version__
from eva_dist.artifact.build import Provenance
from eva_dist.config import Config, OnMaxSteps, Task
from eva_dist.data import TokenStream, open_rows
from eva_dist.engine import make_tracker
from eva_dist.errors import LayerError
from eva_dist.modeling.load import (
    Architecture,
    check_length,
    check_shardable,
    describe_model,
    describe_tokenizer,
    load_tokenizer,
    read_architecture,
)
from eva_dist.modeling.peft_rules import Targets, lora_config, refuse_idle_patterns, resolve_targets
from eva_dist.plan import fingerprint
from eva_dist.session import Assignment
from eva_dist.store.local import LocalStore
from eva_dist.store.names import default_repo_id, default_revision

_log = logging.getLogger(__name__)

NUMERICS_VERSION = 2
"""Part of every fingerprint; raise it when the same settings give other numbers than before."""

_LIBRARIES = ("torch", "transformers", "peft", "datasets", "ray", "safetensors", "pyarrow", "numpy")


@dataclass(frozen=True)
class Prepared:
    """A run that is known to be possible, and what decides its numbers."""

    config: Config
    task: Task
    prefix: str
    targets: Targets
    store: LocalStore
    fingerprint: str
    decisive: dict[str, Any]
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    data: dict[str, Any]

    @property
    def accepts(self) -> bool:
        """Whether layers that have not converged are taken as they are."""
        return self.config.eva.on_max_steps is OnMaxSteps.accept

    @property
    def repo_id(self) -> str:
        """Name of the artifact in the store: as set, else `local/<last part of the model's name>`."""
        return self.config.artifact.repo_id or default_repo_id(self.config.model.name_or_path)

    @property
    def revision(self) -> str:
        """Revision of the artifact: as set, else made of what sweeps vary, e.g. `rho2.0-tau0.99`."""
        return self.config.artifact.revision or default_revision(
            self.config.eva, self.fingerprint, lambda name: self.store.fingerprint_of(self.repo_id, name)
        )


def prepare(config: Config) -> Prepared:
    """Check everything that can be checked without weights and actors.

    Raises:
        ConfigError, DataError, LayerError, StoreError: each with key, value and remedy.
    """
    store = LocalStore(config.store.url)
    config = _with_absolute_paths(config)
    architecture = read_architecture(config.model)
    targets = resolve_targets(architecture.skeleton, lora_config(config.eva, architecture.task.value))
    _refuse_or_warn_unsupported(targets)
    refuse_idle_patterns(config.eva.rank_pattern, targets)
    check_length(architecture, config.data.max_length)
    prefix = architecture.prefix([layer.name for layer in targets.layers])
    check_shardable(config.model, architecture, prefix, config.cluster.shard_size)
    loaded = load_tokenizer(config.model)
    tokenizer = describe_tokenizer(loaded)
    rows = open_rows(config.data)
    TokenStream(rows, loaded, config.data, config.eva.label_mask_value)  # refuses what it cannot tokenise
    model = describe_model(config.model, architecture)
    data = {"digest": rows.digest, "samples": len(rows), "blank": rows.blank}
    decisive = _decisive(config, architecture, targets, model, tokenizer, rows.digest)
    run = Prepared(
        config=config,
        task=architecture.task,
        prefix=prefix,
        targets=targets,
        store=store,
        fingerprint=fingerprint(decisive),
        decisive=decisive,
        model=model | {"id": config.model.name_or_path, "revision": config.model.revision},
        tokenizer=tokenizer,
        data=data,
    )
    store.revision_folder(run.repo_id, run.revision)  # refuses names that the store keeps for itself
    store.check_writable()
    return run


def assignment(run: Prepared) -> Assignment:
    """Return what the workers of this run are told."""
    return Assignment(
        config=run.config,
        task=run.task,
        prefix=run.prefix,
        layers=run.targets.layers,
        data_digest=run.data["digest"],
    )


def provenance(run: Prepared, world_size: int = 1) -> Provenance:
    """Return the facts of the run that its artifact states; `world_size` is that of the gang that ended it."""
    return Provenance(
        fingerprint=run.fingerprint,
        decisive=run.decisive,
        config=run.config.to_dict(),
        model=run.model | {"task_type": run.task.value},
        tokenizer=run.tokenizer,
        data=run.data,
        versions={"eva-dist": __version__, **{name: version(name) for name in _LIBRARIES}},
        world_size=world_size,
        url=run.store.snapshot_url(run.fingerprint),
        repo_id=run.repo_id,
        revision=run.revision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _decisive(
    config: Config,
    architecture: Architecture,
    targets: Targets,
    model: dict[str, Any],
    tokenizer: dict[str, Any],
    data_digest: str,
) -> dict[str, Any]:
    """Return what decides the numbers, and nothing else: no topology, no path, no time."""
    eva, data = config.eva, config.data
    return {
        "method": "eva",
        "numerics": NUMERICS_VERSION,
        "model": model,
        "tokenizer": tokenizer,
        "data": {
            "digest": data_digest,
            "prompt": data.prompt_field is not None,
            "max_length": data.max_length,
            "step_size": data.step_size,
            "order": ["shuffled", data.seed] if data.shuffle else "as it comes",
        },
        "eva": {
            "rho": eva.rho,
            "tau": eva.tau,
            "whiten": eva.whiten,
            "r": eva.r,
            "lora_alpha": eva.lora_alpha,
            "adjust_scaling_factors": eva.adjust_scaling_factors,
            "label_mask_value": eva.label_mask_value if eva.use_label_mask else None,
            "max_steps": eva.max_steps,
        },
        "layers": [[layer.name, layer.r, layer.max_rank] for layer in targets.layers],
        "solver": {"name": config.solver.name.value, **asdict(make_tracker(config.solver, 1))},  # type: ignore[call-overload]
        "trunk": bool(architecture.prefix([layer.name for layer in targets.layers])),
    }


def _with_absolute_paths(config: Config) -> Config:
    """Make paths on this machine absolute: workers, and readers of the artifact, have other working folders."""
    model, data = config.model.name_or_path, os.path.expanduser(config.data.path)
    return replace(
        config,
        model=replace(config.model, name_or_path=os.path.abspath(model)) if Path(model).is_dir() else config.model,
        data=replace(config.data, path=os.path.abspath(data)) if config.data.is_here else config.data,
    )


def _refuse_or_warn_unsupported(targets: Targets) -> None:
    """EVA serves linear layers; a target of another kind keeps the start that PEFT gives it."""
    if not targets.layers:
        raise LayerError(
            f"eva.target_modules names no linear layer, only {', '.join(targets.unsupported[:3])}; "
            "EVA has no start for embeddings and convolutions, name linear layers"
        )
    if targets.unsupported:
        _log.warning("EVA has no start for %s: no linear layers; they are left out", ", ".join(targets.unsupported))
