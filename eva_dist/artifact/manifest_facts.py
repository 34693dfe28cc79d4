"""What an artifact is, without opening its files: its manifest, read with patience, for pages and commands alike."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.reading import Reading, as_count, as_number, plain, short_name, shown

if TYPE_CHECKING:
    from eva_dist.store.snapshot import Snapshot

KNOWN_FORMATS = (1, 2)
"""Versions of the manifest that this was written for."""

DONE, NOT_CONVERGED, UNKNOWN = "done", "not_converged", "unknown"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
STATE_DICT_FILE = "eva_state_dict.safetensors"

_OF_A_POINT = ("eva", "layers", "method", "derived_from", "shared_tracker")
"""Parts of `decisive` in which the points of one pass may differ."""
_MOST_ANCESTORS = 50


@dataclass(frozen=True)
class LayerRow:
    """A layer as the manifest has it; None where it says nothing, or nothing that makes sense."""

    name: str
    input_group: str
    rank: int | None
    max_rank: int | None
    in_features: int | None
    out_features: int | None
    updates: int | None
    stop_reason: str | None
    components_below_tau: int | None

    @property
    def parameters(self) -> int | None:
        """LoRA's A and B."""
        if self.rank is None or self.in_features is None or self.out_features is None:
            return None
        return self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True)
class Ancestor:
    """An artifact that went into this one: `how` is `derived` or `merged`."""

    how: str
    fingerprint: str
    words: str


@dataclass(frozen=True)
class Facts:
    """An artifact, as far as its manifest says; None where it does not. `problems` tell what is missing or odd."""

    fingerprint: str
    commit: str
    status: str
    base_model: str | None
    data: str | None
    r: float | None
    rho: float | None
    tau: float | None
    whiten: bool
    budget: str
    solver: str | None
    steps: int | None
    tokens: int | None
    seconds: float | None
    created: datetime | None
    layers: int
    layers_converged: int | None
    total_rank: int | None
    largest_rank: int | None
    parameters: int | None
    size: int
    method: str
    ancestors: tuple[Ancestor, ...]
    decisive: Mapping[str, Any] | None
    problems: tuple[str, ...]

    @property
    def model_name(self) -> str | None:
        """The base model, without the folders before it."""
        return None if self.base_model is None else short_name(self.base_model)

    @property
    def data_name(self) -> str | None:
        """The data, without the folders before it."""
        return None if self.data is None else short_name(self.data)

    @property
    def is_derived(self) -> bool:
        """Whether its vectors are another artifact's."""
        return any(ancestor.how == "derived" for ancestor in self.ancestors)

    @cached_property
    def own_pass(self) -> str | None:
        """Name of the pass that found the vectors; None if the manifest does not say what decided them."""
        return None if not self.decisive else _digest(self.decisive)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings of EVA that tell the points of a pass apart, as text."""
        numbers = {"r": self.r, "rho": self.rho, "tau": self.tau}
        said = {key: plain(value) for key, value in numbers.items() if value is not None}
        return said | {"whiten": "yes" if self.whiten else "no", "budget": self.budget}


def read_facts(snapshot: Snapshot, fingerprint: str) -> Facts:
    """Return what the manifest says; whatever is in it, this does not raise."""
    reading = Reading(snapshot.manifest)
    layers = read_layers(snapshot.manifest)
    ranks = [layer.rank for layer in layers if layer.rank is not None]
    rows = [layer.parameters for layer in layers if layer.parameters is not None]
    _odd(reading, snapshot, len(layers) - len(ranks))
    whiten = reading.found("config.eva.whiten", "decisive.eva.whiten")
    facts = Facts(
        fingerprint=fingerprint,
        commit=snapshot.commit,
        status=reading.text("status", needed=True) or UNKNOWN,
        base_model=reading.text("model.id", "config.model.name_or_path", needed=True),
        data=_data(reading),
        r=reading.number("config.eva.r", "decisive.eva.r", "r", needed=True),
        rho=reading.number("config.eva.rho", "decisive.eva.rho", needed=True),
        tau=reading.number("config.eva.tau", "decisive.eva.tau", needed=True),
        whiten=whiten is True,
        budget=reading.text("budget", "config.eva.budget") or "ranks",
        solver=reading.text("decisive.solver.name", "config.solver.name"),
        steps=reading.count("steps", needed=True),
        tokens=reading.count("tokens", needed=True),
        seconds=reading.number("seconds"),
        created=reading.time("created", needed=True),
        layers=len(layers),
        layers_converged=_converged(reading, layers),
        total_rank=sum(ranks) if ranks else None,
        largest_rank=max(ranks, default=None),
        parameters=reading.count("trainable_parameters") or (sum(rows) if rows else None),
        size=snapshot.size,
        method=reading.text("method") or UNKNOWN,
        ancestors=_ancestors(reading),
        decisive=_pass(reading),
        problems=(),
    )
    return Facts(**{**facts.__dict__, "problems": tuple(dict.fromkeys(reading.problems))})


def read_layers(manifest: Mapping[str, Any]) -> tuple[LayerRow, ...]:
    """Return the layers in model order (that of `decisive`; a manifest sorts its keys), then those it does not name."""
    described = manifest.get("layers")
    if not isinstance(described, dict):
        return ()
    decisive = manifest.get("decisive")
    listed = decisive.get("layers") if isinstance(decisive, dict) else None
    ordered = [item[0] for item in listed if isinstance(item, list) and item] if isinstance(listed, list) else []
    names = dict.fromkeys([name for name in ordered if isinstance(name, str) and name in described] + [*described])
    return tuple(_layer(name, described[name]) for name in names)


def _layer(name: str, described: Any) -> LayerRow:
    told = described if isinstance(described, dict) else {}
    counts = ("rank", "max_rank", "in_features", "out_features", "updates", "components_below_tau")
    reason, group = told.get("stop_reason"), told.get("input_group")
    return LayerRow(
        name=name,
        input_group=group if isinstance(group, str) else name,
        stop_reason=shown(reason, 40) if isinstance(reason, str) else None,
        **{key: as_count(told.get(key)) for key in counts},
    )


def _odd(reading: Reading, snapshot: Snapshot, without_rank: int) -> None:
    """Note what is wrong with the manifest as a whole."""
    version = as_count(reading.found("format_version"))
    if version is None:
        reading.problems.append("format_version is missing")
    elif version not in KNOWN_FORMATS:
        reading.problems.append(
            f"format_version is {version}; these pages know {' and '.join(map(str, KNOWN_FORMATS))}"
        )
    if (method := reading.found("method")) != "eva":
        told = "missing" if method is None else shown(repr(method), 60)
        reading.problems.append(f"method is {told}, not 'eva': figures that only EVA has may be missing")
    if not reading.mapping("layers", needed=True):
        reading.problems.append("layers names no layer")
    elif without_rank:
        reading.problems.append(f"{without_rank} layers have no rank")
    for file in (*ADAPTER_FILES, STATE_DICT_FILE):
        if file not in snapshot.files:
            reading.problems.append(f"{file} is not among its files")


def _data(reading: Reading) -> str | None:
    path, part = reading.text("config.data.path"), reading.text("config.data.name")
    if path:
        return f"{path} ({part})" if part else path
    digest = reading.text("data.digest", "decisive.data.digest", needed=True)
    return f"sha256:{digest[:12]}" if digest else None


def _converged(reading: Reading, layers: tuple[LayerRow, ...]) -> int | None:
    told = reading.count("layers_converged")
    if told is not None or not any(layer.stop_reason for layer in layers):
        return told
    return sum(layer.stop_reason == "converged" for layer in layers)


def _pass(reading: Reading) -> Mapping[str, Any] | None:
    decisive = reading.mapping("decisive")
    solver = decisive.get("solver")
    of_pass = {key: value for key, value in decisive.items() if key not in _OF_A_POINT}
    if isinstance(solver, dict):
        of_pass["solver"] = {key: value for key, value in solver.items() if key != "n_components"}
    return of_pass or None


def _ancestors(reading: Reading) -> tuple[Ancestor, ...]:
    found = []
    for how in ("derived", "merged"):
        told = reading.found(f"{how}_from")
        for one in (told if isinstance(told, list) else [told])[:_MOST_ANCESTORS]:
            fingerprint = one.get("fingerprint") if isinstance(one, dict) else one
            if isinstance(fingerprint, str) and re.fullmatch(r"[0-9a-f]{8,128}", fingerprint):
                found.append(Ancestor(how, fingerprint, _how(one)))
    return tuple(found)


def _how(told: Any) -> str:
    if not isinstance(told, dict):
        return ""
    exact, weight = told.get("exact"), as_number(told.get("weight"))
    words = {True: "exact: a run of these settings gives the same numbers", False: "near to a run of these settings"}
    said = [words[exact]] if isinstance(exact, bool) else []
    said += [f"weight {plain(weight)}"] if weight is not None else []
    return ", ".join(said)


def _digest(value: Any) -> str | None:
    try:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
    except RecursionError:  # nested as deep as a parser goes: nobody's settings
        return None
