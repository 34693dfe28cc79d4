"""What an artifact is, without opening its files: what lists and pages show of it, never an error.

A manifest may come from anywhere and say anything: what makes no sense is left out, and told among `problems`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, STATE_DICT_FILE
from eva_dist.artifact.layer_table import LayerRow, layer_rows
from eva_dist.artifact.reading import Reading, as_count, as_number, plain, short_name, shown

if TYPE_CHECKING:
    from eva_dist.store.snapshot import Snapshot

KNOWN_FORMATS = (1, 2)
"""Versions of the manifest that this was written for."""

DONE, NOT_CONVERGED, UNKNOWN = "done", "not_converged", "unknown"
METHOD = "eva"  # as in `methods/eva.py`, which takes torch
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE)

_OF_A_POINT = ("eva", "layers", "method", "derived_from", "shared_tracker")
"""Parts of `decisive` in which the points of one pass may differ."""
_MOST_ANCESTORS = 50
_LARGEST_WHOLE = 1e15
_LISTED = ("status", "base_model", "data", "r", "rho", "tau", "whiten", "created", "size")


@dataclass(frozen=True)
class Ancestor:
    """An artifact that went into this one: `how` is `derived` or `merged`."""

    how: str
    fingerprint: str
    words: str


@dataclass(frozen=True)
class Summary:
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
        try:
            text = json.dumps(self.decisive, sort_keys=True)
        except RecursionError:  # nested as deep as a parser goes: nobody's settings
            return None
        return hashlib.sha256(text.encode()).hexdigest()[:16] if self.decisive else None

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings of EVA that tell the points of a pass apart, as text."""
        numbers = {"r": self.r, "rho": self.rho, "tau": self.tau}
        said = {key: plain(value) for key, value in numbers.items() if value is not None}
        return said | {"whiten": "yes" if self.whiten else "no", "budget": self.budget}

    def to_dict(self) -> dict[str, Any]:
        """Return what a list says of an artifact, as JSON has it."""
        created = None if self.created is None else self.created.isoformat()
        return {key: getattr(self, key) for key in _LISTED} | {"r": _whole_number(self.r), "created": created}


UNREAD: dict[str, Any] = dict.fromkeys(_LISTED)
"""What `Summary.to_dict` says of an artifact whose manifest cannot be read."""


def read_summary(snapshot: Snapshot, fingerprint: str | None = None) -> Summary:
    """Return what the manifest says; whatever is in it, this does not raise.

    `fingerprint` is that under which a store has it; None: the manifest's own.
    """
    reading = Reading(snapshot.manifest)
    layers = layer_rows(snapshot.manifest)
    ranks = [layer.rank for layer in layers if layer.rank is not None]
    rows = [layer.parameters for layer in layers if layer.parameters is not None]
    _note_oddities(reading, snapshot, len(layers) - len(ranks))
    whiten = reading.found("config.eva.whiten", "decisive.eva.whiten")
    return Summary(
        fingerprint=snapshot.fingerprint if fingerprint is None else fingerprint,
        commit=snapshot.commit,
        status=reading.text("status", needed=True) or UNKNOWN,
        base_model=reading.text("model.id", "config.model.name_or_path", needed=True),
        data=_data_words(reading),
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
        layers_converged=_count_converged(reading, layers),
        total_rank=sum(ranks) if ranks else None,
        largest_rank=max(ranks, default=None),
        parameters=reading.count("trainable_parameters") or (sum(rows) if rows else None),
        size=snapshot.size,
        method=reading.text("method") or UNKNOWN,
        ancestors=_read_ancestors(reading),
        decisive=_decisive_of_pass(reading),
        problems=tuple(dict.fromkeys(reading.problems)),  # last: those above note what they miss
    )


def _note_oddities(reading: Reading, snapshot: Snapshot, without_rank: int) -> None:
    """Note what is wrong with the manifest as a whole."""
    version = as_count(reading.found("format_version"))
    if version is None:
        reading.problems.append("format_version is missing")
    elif version not in KNOWN_FORMATS:
        reading.problems.append(
            f"format_version is {version}; these pages know {' and '.join(map(str, KNOWN_FORMATS))}"
        )
    if (method := reading.found("method")) != METHOD:
        told = "missing" if method is None else shown(repr(method), 60)
        reading.problems.append(f"method is {told}, not {METHOD!r}: figures that only EVA has may be missing")
    if not reading.mapping("layers", needed=True):
        reading.problems.append("layers names no layer")
    elif without_rank:
        reading.problems.append(f"{without_rank} layers have no rank")
    for file in (*ADAPTER_FILES, STATE_DICT_FILE):
        if file not in snapshot.files:
            reading.problems.append(f"{file} is not among its files")


def _data_words(reading: Reading) -> str | None:
    path, part = reading.text("config.data.path"), reading.text("config.data.name")
    if path:
        return f"{path} ({part})" if part else path
    digest = reading.text("data.digest", "decisive.data.digest", needed=True)
    return f"sha256:{digest[:12]}" if digest else None


def _count_converged(reading: Reading, layers: tuple[LayerRow, ...]) -> int | None:
    told = reading.count("layers_converged")
    if told is not None or not any(layer.stop_reason for layer in layers):
        return told
    return sum(layer.stop_reason == "converged" for layer in layers)


def _decisive_of_pass(reading: Reading) -> Mapping[str, Any] | None:
    decisive = reading.mapping("decisive")
    solver = decisive.get("solver")
    of_pass = {key: value for key, value in decisive.items() if key not in _OF_A_POINT}
    if isinstance(solver, dict):
        of_pass["solver"] = {key: value for key, value in solver.items() if key != "n_components"}
    return of_pass or None


def _read_ancestors(reading: Reading) -> tuple[Ancestor, ...]:
    found = []
    for how in ("derived", "merged"):
        told = reading.found(f"{how}_from")
        for one in (told if isinstance(told, list) else [told])[:_MOST_ANCESTORS]:
            fingerprint = one.get("fingerprint") if isinstance(one, dict) else one
            if isinstance(fingerprint, str) and re.fullmatch(r"[0-9a-f]{8,128}", fingerprint):
                found.append(Ancestor(how, fingerprint, _how_it_went_in(one)))
    return tuple(found)


def _how_it_went_in(told: Any) -> str:
    if not isinstance(told, dict):
        return ""
    exact, weight = told.get("exact"), as_number(told.get("weight"))
    words = {True: "exact: a run of these settings gives the same numbers", False: "near to a run of these settings"}
    said = [words[exact]] if isinstance(exact, bool) else []
    said += [f"weight {plain(weight)}"] if weight is not None else []
    return ", ".join(said)


def _whole_number(value: float | None) -> float | None:
    """Return a number as JSON has a whole one, if it is."""
    return int(value) if value is not None and value.is_integer() and abs(value) < _LARGEST_WHOLE else value
