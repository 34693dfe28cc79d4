"""Checkpoints of a pass: what the driver knows, and the tracker state of each input group, by group.

    <root>/<fingerprint>/step-00000025/manifest.json      sha256 of the files beside it; written last
                                       pass.json           counts, ranks, history
                                       summaries.safetensors   ratios and cosines of each group
                                       group-00007.safetensors tracker state of one input group

State lies by input group, not by worker, so that a pass goes on on any number of workers.
A checkpoint becomes visible by one rename. A group that has not changed since the
checkpoint before is copied from there, not fetched again. No pickle.
"""

import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eva_dist.controller import ConvergenceRow, GroupState, PointState, first_state
from eva_dist.plan import Plan
from eva_dist.store.files import sync, sync_tree

_log = logging.getLogger(__name__)

_VERSION = 1
_MANIFEST, _PASS, _SUMMARIES = "manifest.json", "pass.json", "summaries.safetensors"
_COUNTS = ("steps", "tokens", "elapsed", "epoch", "exhausted", "sent_bytes", "svd_processor_seconds", "pass_seconds")

Fetch = Callable[[int], Mapping[str, Tensor]]
"""Input group -> its tracker state by name, on the CPU."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that has been verified.

    Attributes:
        folder: where it lies.
        steps: steps that were done.
        same_input: members of each input group, in order; another partition cannot take the state.
    """

    folder: Path
    steps: int
    same_input: tuple[tuple[str, ...], ...]
    facts: Mapping[str, Any]

    def fits(self, plan: Plan) -> bool:
        """Tell whether this is state of the plan's input groups."""
        return self.same_input == tuple(group.members for group in plan.groups)

    def state(self, plan: Plan, tau: float, max_steps: int, accept: bool) -> PointState:
        """Return the state of the pass; owners are those of `plan`."""
        summaries = {name: tensor.clone() for name, tensor in load_file(self.folder / _SUMMARIES).items()}
        groups = tuple(
            GroupState(summaries.get(f"ratios.{i}"), summaries.get(f"cosines.{i}"), **counts)
            for i, counts in enumerate(self.facts["groups"])
        )
        return dataclasses.replace(
            first_state(plan, tau, max_steps, accept),
            groups=groups,
            ranks=self.facts["ranks"],
            seconds=self.facts["seconds"],
            history=tuple(ConvergenceRow(*row) for row in self.facts["history"]),
            **{name: self.facts[name] for name in _COUNTS},
        )

    @property
    def updates(self) -> tuple[int, ...]:
        """How many updates each group's state has seen; 0: there is no state."""
        return tuple(group["updates"] for group in self.facts["groups"])

    def tensors(self, group: int) -> dict[str, Tensor]:
        """Return a group's tracker state by name."""
        return {name: tensor.clone() for name, tensor in load_file(self.folder / _group_file(group)).items()}


class CheckpointFolder:
    """The checkpoints of one run: the last `keep` of them."""

    def __init__(self, root: Path, fingerprint: str, keep: int) -> None:
        """Touch nothing yet."""
        self.folder = root / fingerprint
        self._keep = keep
        self._last: Checkpoint | None = None

    def write(self, state: PointState, fetch: Fetch) -> Checkpoint:
        """Write a checkpoint after `state.steps` steps; of those before it the newest `keep - 1` stay.

        Raises:
            OSError: the disk is full, or cannot be written; nothing half-written is left, older checkpoints stay.
            Exception: what `fetch` raises, likewise.
        """
        target = self._path(state.steps)
        incoming = self.folder / f".incoming-{secrets.token_hex(8)}"
        try:
            incoming.mkdir(parents=True)
            facts = self._fill(incoming, state, fetch)
            shutil.rmtree(target, ignore_errors=True)  # of the same step: it was damaged, or another run's
            os.rename(incoming, target)
            sync(self.folder)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        self._prune(target)
        self._last = Checkpoint(target, state.steps, _members(state.plan), facts)
        return self._last

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose every file has its sha256; a damaged one is said and passed over."""
        for folder in self._stored():
            try:
                self._last = _read(folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                _log.warning("checkpoint %s is damaged (%s); it is passed over", folder, error)
            else:
                return self._last
        return None

    def clear(self) -> None:
        """Remove all checkpoints of the run, and the folders that this leaves empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # others' checkpoints are there
            self.folder.parent.rmdir()

    def _fill(self, folder: Path, state: PointState, fetch: Fetch) -> dict[str, Any]:
        before = self._last if self._last and self._last.fits(state.plan) else None
        hashes: dict[str, str] = {}
        for group, known in zip(state.plan.groups, state.groups, strict=True):
            name = _group_file(group.index)
            if known.updates == 0:
                continue
            unchanged = before is not None and before.updates[group.index] == known.updates
            if not (unchanged and _copied(before, name, folder)):
                save_file(dict(fetch(group.index)), folder / name)
            hashes[name] = _sha256(folder / name)
        save_file(_summaries(state), folder / _SUMMARIES)
        facts = _facts(state)
        _write_json(folder / _PASS, facts)
        hashes |= {name: _sha256(folder / name) for name in (_SUMMARIES, _PASS)}
        _write_json(folder / _MANIFEST, {"version": _VERSION, "sha256": hashes})
        sync_tree(folder)
        return {**facts, "hashes": hashes}

    def _prune(self, newest: Path) -> None:
        """Keep the newest and those before it; what is of later steps was passed over when the pass began here."""
        older = [folder for folder in self._stored() if folder.name < newest.name]
        for folder in {*self._stored()} - {newest, *older[: self._keep - 1]}:
            shutil.rmtree(folder, ignore_errors=True)

    def _stored(self) -> list[Path]:
        """Return the folders of checkpoints, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _path(self, steps: int) -> Path:
        return self.folder / f"step-{steps:08d}"


def _read(folder: Path) -> Checkpoint:
    """Return a checkpoint; raise `ValueError` unless every file has its sha256."""
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    if manifest["version"] != _VERSION:
        raise ValueError(f"version {manifest['version']} is not {_VERSION}")
    for name, digest in manifest["sha256"].items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} differs from its sha256")
    facts = json.loads((folder / _PASS).read_text(encoding="utf-8"))
    same_input = tuple(tuple(members) for members in facts["same_input"])
    return Checkpoint(folder, facts["steps"], same_input, {**facts, "hashes": manifest["sha256"]})


def _facts(state: PointState) -> dict[str, Any]:
    counts = ("rows", "updates", "skipped", "step")
    return {
        **{name: getattr(state, name) for name in _COUNTS},
        "same_input": _members(state.plan),
        "groups": [{name: getattr(group, name) for name in counts} for group in state.groups],
        "ranks": dict(state.ranks),
        "seconds": dict(state.seconds),
        "history": [dataclasses.astuple(row) for row in state.history],
    }


def _summaries(state: PointState) -> dict[str, Tensor]:
    named = {f"ratios.{i}": group.ratios_K for i, group in enumerate(state.groups)}
    named |= {f"cosines.{i}": group.cosines_K for i, group in enumerate(state.groups)}
    return {name: tensor.clone() for name, tensor in named.items() if tensor is not None}


def _members(plan: Plan) -> tuple[tuple[str, ...], ...]:
    return tuple(group.members for group in plan.groups)


def _group_file(group: int) -> str:
    return f"group-{group:05d}.safetensors"


def _copied(checkpoint: Checkpoint | None, name: str, folder: Path) -> bool:
    """Copy a file of an older checkpoint; False if it is not what it was. No link: damage to one would be to both."""
    assert checkpoint is not None
    try:
        shutil.copyfile(checkpoint.folder / name, folder / name)
    except FileNotFoundError:
        return False
    return _sha256(folder / name) == checkpoint.facts["hashes"][name]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
