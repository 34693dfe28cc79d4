"""A run before its first step: all that needs neither weights nor actors.

Whatever is wrong with the settings, the model's config, the data or the store is said here,
before anything starts.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from eva_dist import __version__
from eva_dist.artifact.file_names import COVARIANCE_FILE
from eva_dist.artifact.write import Provenance
from eva_dist.calibration.group_svds import make_tracker
from eva_dist.calibration.worker import Assignment, PointAssignment
from eva_dist.config import Budget, Config, DataConfig, EvaConfig, OnMaxSteps, Task
from eva_dist.data import TokenStream, check_rows, open_rows
from eva_dist.data.chat_template import takes_tools
from eva_dist.errors import LayerError
from eva_dist.hashing import fingerprint
from eva_dist.methods.eva import AFTER_THE_PASS, NAME, Eva, decisive_settings
from eva_dist.modeling.heads import is_multimodal
from eva_dist.modeling.load import (
    Architecture,
    check_shardable,
    describe_model,
    describe_tokenizer,
    load_tokenizer,
    read_architecture,
)
from eva_dist.modeling.peft_rules import Targets, lora_config, refuse_idle_patterns, resolve_targets
from eva_dist.modeling.positions import check_length
from eva_dist.modeling.text_only import check_text_reaches
from eva_dist.store.store import Store

T = TypeVar("T")

_log = logging.getLogger(__name__)

NUMERICS_VERSION = 3
"""Part of every fingerprint; raise it when the same settings give other numbers than before."""

_ANOTHER = "another"
"""In place of a fingerprint: not ours."""

_LIBRARIES = ("torch", "transformers", "peft", "datasets", "ray", "safetensors", "pyarrow", "numpy")


@dataclass(frozen=True)
class Prepared:
    """A run that is known to be possible, and what decides its numbers.

    `name_taken` says that an earlier point of the same sweep has the plain default revision.
    """

    config: Config
    task: Task
    prefix: str
    targets: Targets
    store: Store
    decisive: dict[str, Any]
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    data: dict[str, Any]
    name_taken: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """What names the artifact: the sha256 of what decides its numbers."""
        return fingerprint(self.decisive)

    @cached_property
    def pass_key(self) -> str:
        """What names the pass: points that differ only in what is done with its result have it in common."""
        eva = {name: value for name, value in self.decisive["eva"].items() if name not in AFTER_THE_PASS}
        return fingerprint(self.decisive | {"eva": eva})

    def is_answered_by(self, manifest: Mapping[str, Any]) -> bool:
        """Tell whether the artifact of this fingerprint has all files that this run is to publish."""
        return not self.config.solver.keep_covariance or COVARIANCE_FILE in manifest["files"]

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
        """Revision of the artifact: as set, else made of what sweeps vary, e.g. `rho2.0-tau0.99-whiten-params`."""

        def holder(name: str) -> str | None:
            return _ANOTHER if self.name_taken else self.store.fingerprint_of(self.repo_id, name)

        return self.config.artifact.revision or default_revision(self.config.eva, self.decisive, holder)


class ReadCache:
    """What has been read for earlier points of a sweep: most have model, tokenizer and data in common."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._found: dict[Any, Any] = {}

    def get(self, settings: Any, read: Callable[[], T]) -> T:
        """Return what `read` returned for these settings before, or returns now."""
        key = repr(settings)
        if key not in self._found:
            self._found[key] = read()
        found: T = self._found[key]
        return found


def prepare(config: Config, known: ReadCache | None = None) -> Prepared:
    """Check everything that can be checked without weights and actors.

    Args:
        config: of the run.
        known: what earlier points of a sweep have read; what this one reads is added.

    Raises:
        ConfigError, DataError, LayerError, StoreError: each with key, value and remedy.
    """
    store = Store(config.store.url)
    config = _with_absolute_paths(config)
    known = known or ReadCache()
    architecture = known.get(config.model, lambda: read_architecture(config.model))
    targets = resolve_targets(architecture.skeleton, lora_config(config.eva, architecture.task.value))
    _refuse_or_warn_unsupported(targets)
    refuse_idle_patterns(config.eva.rank_pattern, targets)
    check_length(architecture, config.data.max_length)
    check_text_reaches(architecture, targets.names)
    prefix = architecture.prefix(targets.names)
    check_shardable(config.model, architecture, prefix, config.cluster.shard_size)
    loaded = known.get(("tokenizer", config.model), lambda: load_tokenizer(config.model))
    tokenizer = describe_tokenizer(loaded)
    mask = config.eva.label_mask_value if config.eva.use_label_mask else None
    read = known.get((config.model, config.data, mask), lambda: _read_data(config.data, loaded, mask))
    model = known.get(("hashes", config.model), lambda: describe_model(config.model, architecture))
    run = Prepared(
        config=config,
        task=architecture.task,
        prefix=prefix,
        targets=targets,
        store=store,
        decisive=_decisive_facts(config, architecture, targets, model, tokenizer, read),
        model=model | _names_of_model(config, architecture),
        tokenizer=tokenizer,
        data=read,
    )
    store.revision_url(run.repo_id, run.revision)  # refuses names that the store keeps for itself
    found = store.find(run.fingerprint)
    answers = found is not None and run.is_answered_by(found.manifest)
    if not answers or store.fingerprint_of(run.repo_id, run.revision) != run.fingerprint:
        store.check_writable()  # else a store that can only be read has the answer
    return run


def _names_of_model(config: Config, architecture: Architecture) -> dict[str, Any]:
    """Return what an artifact says of the model beside its hashes: where it lies, and its class if the task has two."""
    names = {"id": config.model.name_or_path, "revision": config.model.revision}
    return names | ({"auto_class": architecture.auto_class.__name__} if is_multimodal(architecture.auto_class) else {})


def _read_data(config: DataConfig, tokenizer: Any, label_mask_value: int | None) -> dict[str, Any]:
    """Return what the data is: digest, rows, blank rows; and a digest of its tools, where a template is handed some."""
    rows = open_rows(config)
    check_rows(TokenStream(rows, tokenizer, config, label_mask_value))  # refuses what it cannot tokenise
    tools = {} if rows.tools_digest is None or not takes_tools(tokenizer) else {"tools": rows.tools_digest}
    return {"digest": rows.digest, "samples": len(rows), "blank": rows.blank, **tools}


def assignment(*runs: Prepared, stream: Prepared | None = None) -> Assignment:
    """Return what the workers are told of these runs, which share their forwards: each is a point.

    `stream` has the layers of all of them; None: the first one has.
    """
    run = stream or runs[0]
    return Assignment(
        config=run.config,
        task=run.task,
        prefix=run.prefix,
        layers=run.targets.layers,
        points=tuple(
            PointAssignment(
                key=each.pass_key,
                layers=each.targets.layers,
                budget=each.config.eva.budget,
                method=Eva(each.config.eva.tau),
                max_steps=each.config.eva.max_steps,
                accept=each.accepts,
            )
            for each in runs
        ),
        data_digest=run.data["digest"],
        tools_digest=run.data.get("tools"),
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
        versions=versions(),
        world_size=world_size,
        url=run.store.snapshot_url(run.fingerprint),
        repo_id=run.repo_id,
        revision=run.revision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def versions() -> dict[str, str]:
    """Return the versions of what computes here."""
    return {"eva-dist": __version__, **{name: version(name) for name in _LIBRARIES}}


def _decisive_facts(
    config: Config,
    architecture: Architecture,
    targets: Targets,
    model: dict[str, Any],
    tokenizer: dict[str, Any],
    read: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what decides the numbers, and nothing else: no topology, no path, no time."""
    eva, data = config.eva, config.data
    return {
        "method": NAME,
        "numerics": NUMERICS_VERSION,
        "model": model,
        "tokenizer": tokenizer,
        "data": {
            "digest": read["digest"],
            "prompt": data.prompt_field is not None,
            "max_length": data.max_length,
            "step_size": data.step_size,
            "order": ["shuffled", data.seed] if data.shuffle else "as it comes",
            **({"tools": read["tools"]} if "tools" in read else {}),  # roles that are mapped are in the digest
        },
        "eva": decisive_settings(eva) | {"max_steps": eva.max_steps},
        "layers": [[layer.name, layer.r, layer.max_rank] for layer in targets.layers],
        "solver": {"name": config.solver.name.value, **asdict(make_tracker(config.solver, 1))},  # type: ignore[call-overload]
        "trunk": bool(architecture.prefix(targets.names)),
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


def default_repo_id(model: str) -> str:
    """Return `local/<last part of the model's name>`, with what is not plain in it replaced."""
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(model).name)
    return f"local/{stem.lstrip('.') or 'model'}"


def default_revision(eva: EvaConfig, decisive: Mapping[str, Any], fingerprint_of: Callable[[str], str | None]) -> str:
    """Return a revision made of what sweeps vary, e.g. `rho2.0-tau0.99-whiten-params`.

    Where another artifact (other r, targets, data) has that name, the fingerprint is added
    to it: a name that nobody asked for takes no other artifact's place.

    Args:
        eva: settings of the artifact.
        decisive: what decides the artifact's numbers.
        fingerprint_of: tells which artifact a revision is now, None if it is free.
    """
    name = f"rho{eva.rho}-tau{eva.tau}" + ("-whiten" if eva.whiten else "")
    name += "-shared" if "shared_tracker" in decisive else ""
    name += "-params" if eva.budget is Budget.params else ""
    name += "-derived" if "derived_from" in decisive else ""
    name += "-merged" if "merged_from" in decisive else ""
    own = fingerprint(decisive)
    return name if fingerprint_of(name) in (None, own) else f"{name}-{own[:8]}"
