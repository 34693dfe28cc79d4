"""Checkpoints of a pass: what the driver knows of each point, and the tracker states of each input group, by group.

    <root>/<fingerprint>/step-00000025/manifest.json      sha256 of the files beside it; written last
                                       pass.json           counts, ranks, history of each point
                                       summaries.safetensors   ratios and cosines of each point's groups
                                       group-00007.safetensors tracker states of one input group

State lies by input group, not by worker, so that a pass goes on on any number of workers, and by
point, so that it goes on with those that are still wanted.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eva_dist import errors
from eva_dist.calibration.controller import ConvergenceRow, GroupState, PointState
from eva_dist.calibration.pass_state import PassState, first_pass
from eva_dist.errors import EvaDistError
from eva_dist.plan import InputGroup, PassPlan, Plan
from eva_dist.store.durable_files import sync, sync_tree

_log = logging.getLogger(__name__)

_VERSION = 2
_MANIFEST, _PASS, _SUMMARIES = "manifest.json", "pass.json", "summaries.safetensors"
_COUNTS = ("steps", "tokens", "elapsed", "epoch", "exhausted", "sent_bytes", "svd_processor_seconds", "pass_seconds")
_LATER_COUNTS = ("unlabelled",)
"""Counts that checkpoints of older versions lack: they are 0 there."""

Fetch = Callable[[int], Mapping[str, Tensor]]
"""Input group -> its tracker state by name, on the CPU."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that has been verified.

    Attributes:
        folder: where it lies.
        steps: steps that were done.
        keys: the points that it holds.
        same_input: members of each input group of the stream, in order.
    """

    folder: Path
    steps: int
    keys: tuple[str, ...]
    same_input: list[list[str]]
    facts: Mapping[str, Any]

    def fits(self, plan: PassPlan, accept: bool = False) -> bool:
        """Tell whether the pass can go on from here: all its points are here, with the same input groups.

        What ended a point may not end it when `accept` is another than then.
        """
        if not set(plan.keys) <= set(self.keys):
            return False
        wanted = [self._points[key] for key in plan.keys]
        if any(point["error"] is not None and point["accept"] is not accept for point in wanted):
            return False
        here = {name for group in plan.groups for name in group.members}
        # points that are no longer wanted may have had layers of their own in these groups
        left = [kept for members in self.same_input if (kept := [name for name in members if name in here])]
        then = [self._points[key]["same_input"] for key in plan.keys]
        return left == _member_names(plan) and then == [_member_names(point) for point in plan.points]

    def state(self, plan: PassPlan, points: Sequence[PointState]) -> PassState:
        """Return the state of the pass; `points` are as before their first step, owners are those of `plan`."""
        summaries = load_file(self.folder / _SUMMARIES)
        restored = [self._restore_point(key, point, summaries) for key, point in zip(plan.keys, points, strict=True)]
        found = [self._points[key]["error"] for key in plan.keys]
        return replace(first_pass(plan, restored), errors=tuple(_to_error(error) for error in found))

    def points(self, plan: PassPlan) -> dict[int, int]:
        """Return where each point of the plan stood in this checkpoint, as index then to index now."""
        return {self.keys.index(key): point for point, key in enumerate(plan.keys)}

    def updates(self, group: int) -> tuple[int, ...]:
        """Return how many updates a group of the stream, as numbered then, has seen for each point."""
        members = self.same_input[group]
        own = [next((groups[name] for name in members if name in groups), None) for groups in self._group_of]
        facts = [self._points[key]["groups"] for key in self.keys]
        return tuple(0 if at is None else groups[at]["updates"] for at, groups in zip(own, facts, strict=True))

    def tensors(self, group: InputGroup) -> dict[str, Tensor] | None:
        """Return the tracker states of a group of the present stream by name; None if there are none."""
        then = next(i for i, members in enumerate(self.same_input) if group.tap in members)
        if not any(self.updates(then)):
            return None
        return {name: tensor.clone() for name, tensor in load_file(self.folder / _group_file(then)).items()}

    @cached_property
    def _group_of(self) -> list[dict[str, int]]:
        """For each point its layers and which of its own groups they are in."""
        partitions = [self._points[key]["same_input"] for key in self.keys]
        return [{name: i for i, members in enumerate(groups) for name in members} for groups in partitions]

    @property
    def _points(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.facts["points"]
        return found

    def _restore_point(self, key: str, point: PointState, summaries: Mapping[str, Tensor]) -> PointState:
        facts, at = self._points[key], self.keys.index(key)
        groups = tuple(
            GroupState(
                _clone_tensor(summaries.get(f"{at}.ratios.{i}")),
                _clone_tensor(summaries.get(f"{at}.cosines.{i}")),
                **counts,
            )
            for i, counts in enumerate(facts["groups"])
        )
        return replace(
            point,
            groups=groups,
            ranks=facts["ranks"],
            seconds=facts["seconds"],
            history=tuple(ConvergenceRow(*row) for row in facts["history"]),
            **{name: facts[name] for name in _COUNTS},
            **{name: facts.get(name, 0) for name in _LATER_COUNTS},
        )


class CheckpointFolder:
    """The checkpoints of one run: the last `keep` of them."""

    def __init__(self, root: Path, fingerprint: str, keep: int) -> None:
        """Touch nothing yet."""
        self.folder = root / fingerprint
        self._keep = keep
        self._last: Checkpoint | None = None

    def write(self, state: PassState, fetch: Fetch) -> Checkpoint:
        """Write a checkpoint after `state.steps` steps; of those before it the newest `keep - 1` stay.

        Raises:
            OSError: the disk is full, or cannot be written; nothing half-written is left, older checkpoints stay.
            Exception: what `fetch` raises, likewise.
        """
        target = self._folder_of(state.steps)
        incoming = self.folder / f".incoming-{secrets.token_hex(8)}"
        try:
            incoming.mkdir(parents=True)
            facts = self._fill_folder(incoming, state, fetch)
            shutil.rmtree(target, ignore_errors=True)  # of the same step: it was damaged, or another run's
            # the rename is the one moment at which the checkpoint becomes visible: whole or not at all
            os.rename(incoming, target)
            # a rename is durable when its folder is
            sync(self.folder)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        self._prune_older(target)
        self._last = Checkpoint(target, state.steps, state.plan.keys, _member_names(state.plan), facts)
        return self._last

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose every file has its sha256; a damaged one is said and passed over."""
        for folder in self._stored_folders():
            try:
                self._last = _read_verified(folder)
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

    def _fill_folder(self, folder: Path, state: PassState, fetch: Fetch) -> dict[str, Any]:
        facts = _pass_facts(state)
        now = Checkpoint(folder, state.steps, state.plan.keys, _member_names(state.plan), facts)
        last = self._last
        # only the checkpoint before can be copied from, and only while points and groups are the same
        before = last if last and (last.keys, last.same_input) == (now.keys, now.same_input) else None
        hashes: dict[str, str] = {}
        for group in range(len(now.same_input)):
            name, updates = _group_file(group), now.updates(group)
            if not any(updates):
                continue
            unchanged = before is not None and before.updates(group) == updates
            if not (unchanged and _copy_verified(before, name, folder)):
                save_file(dict(fetch(group)), folder / name)
            hashes[name] = _sha256(folder / name)
        save_file(_summary_tensors(state), folder / _SUMMARIES)
        _write_json(folder / _PASS, facts)
        hashes |= {name: _sha256(folder / name) for name in (_SUMMARIES, _PASS)}
        # last: a folder without it was cut off while it was written
        _write_json(folder / _MANIFEST, {"version": _VERSION, "sha256": hashes})
        sync_tree(folder)
        return {**facts, "hashes": hashes}

    def _prune_older(self, newest: Path) -> None:
        """Keep the newest and those before it; what is of later steps was passed over when the pass began here."""
        # names sort by step
        older = [folder for folder in self._stored_folders() if folder.name < newest.name]
        for folder in {*self._stored_folders()} - {newest, *older[: self._keep - 1]}:
            shutil.rmtree(folder, ignore_errors=True)

    def _stored_folders(self) -> list[Path]:
        """Return the folders of checkpoints, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _folder_of(self, steps: int) -> Path:
        return self.folder / f"step-{steps:08d}"


def _read_verified(folder: Path) -> Checkpoint:
    """Return a checkpoint; raise `ValueError` unless every file has its sha256."""
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    if manifest["version"] != _VERSION:
        raise ValueError(f"version {manifest['version']} is not {_VERSION}")
    for name, digest in manifest["sha256"].items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} differs from its sha256")
    facts = json.loads((folder / _PASS).read_text(encoding="utf-8"))
    same_input = facts["same_input"]
    return Checkpoint(
        folder, facts["steps"], tuple(facts["points"]), same_input, {**facts, "hashes": manifest["sha256"]}
    )


def _pass_facts(state: PassState) -> dict[str, Any]:
    points = zip(state.plan.keys, state.points, state.errors, strict=True)
    return {
        "steps": state.steps,
        "same_input": _member_names(state.plan),
        "points": {key: _point_facts(point) | {"error": _from_error(error)} for key, point, error in points},
    }


def _point_facts(point: PointState) -> dict[str, Any]:
    counts = ("rows", "updates", "skipped", "step")
    return {
        **{name: getattr(point, name) for name in (*_COUNTS, *_LATER_COUNTS)},
        "same_input": _member_names(point.plan),
        "groups": [{name: getattr(group, name) for name in counts} for group in point.groups],
        "ranks": dict(point.ranks),
        "seconds": dict(point.seconds),
        "history": [dataclasses.astuple(row) for row in point.history],
        "accept": point.accept,
    }


def _summary_tensors(state: PassState) -> dict[str, Tensor]:
    named: dict[str, Tensor | None] = {}
    for at, point in enumerate(state.points):
        named |= {f"{at}.ratios.{i}": group.ratios_K for i, group in enumerate(point.groups)}
        named |= {f"{at}.cosines.{i}": group.cosines_K for i, group in enumerate(point.groups)}
    return {name: tensor.clone() for name, tensor in named.items() if tensor is not None}


def _from_error(error: EvaDistError | None) -> list[str] | None:
    return None if error is None else [type(error).__name__, str(error)]


def _to_error(written: Sequence[str] | None) -> EvaDistError | None:
    """Return the error that ended a point, of the kind that it was."""
    if written is None:
        return None
    kind = getattr(errors, written[0], EvaDistError)
    assert issubclass(kind, EvaDistError), written
    return kind(written[1])


def _clone_tensor(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _member_names(plan: Plan | PassPlan) -> list[list[str]]:
    """Return the members of each input group as JSON has them."""
    return [list(group.members) for group in plan.groups]


def _group_file(group: int) -> str:
    return f"group-{group:05d}.safetensors"


def _copy_verified(checkpoint: Checkpoint | None, name: str, folder: Path) -> bool:
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
