"""Whether artifacts add up, and why not: one line for each thing in which they do not agree."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eva_dist.artifact.facts import Provenance
from eva_dist.artifact.file_names import COVARIANCE_FILE
from eva_dist.artifact.restore import Stored
from eva_dist.calibration.controller import PointState
from eva_dist.config import config_groups
from eva_dist.transform.derive import plain_value, shown_value

MERGED_SETTINGS = (
    "r",
    "rho",
    "tau",
    "budget",
    "rank_pattern",
    "whiten",
    "lora_alpha",
    "adjust_scaling_factors",
)
"""Of EVA: what is applied to the sums, so that it may be given anew."""
_FIXED = {
    "use_label_mask": "it decides which tokens count, and the sources' have been counted",
    "label_mask_value": "it decides which tokens count, and the sources' have been counted",
    "target_modules": "the layers are those of the sources",
    "exclude_modules": "the layers are those of the sources",
    "max_steps": "no step is made here",
    "on_max_steps": "no step is made here; layers that had not converged in every source are named",
}
_NOT_MODEL = ("id", "revision")
"""Where the base model was found says nothing of what it is."""
_COMMAND_GROUPS = ("model", "data", "eva", "store", "artifact")
_MOST_SHOWN = 80
_UNQUOTED = re.compile(r"[\w./:@+~-]+")
"""What Hydra takes for a text without quotes around it."""


@dataclass(frozen=True)
class MergeSource:
    """An artifact that takes part; `said` is how it was named, `sha256` that of its sums, None where it keeps none."""

    said: str
    stored: Stored
    weight: float
    sha256: str | None

    @property
    def fingerprint(self) -> str:
        """Name of the artifact."""
        return self.stored.provenance.fingerprint

    @property
    def state(self) -> PointState:
        """The end of its pass, or passes."""
        return self.stored.result.state


def problems(sources: Sequence[MergeSource], changes: Mapping[str, Any]) -> Iterator[str]:
    """Yield why these artifacts cannot be merged with these settings of EVA."""
    for key, value in changes.items():
        if key not in MERGED_SETTINGS:
            yield f"eva.{key}={_short_value(value)} cannot be set by a merge: {_FIXED[key]}; leave it out"
    without = [source for source in sources if source.sha256 is None]
    for source in without:
        yield (
            f"{source.said} (fingerprint {source.fingerprint}) keeps no {COVARIANCE_FILE}, so it cannot be merged; "
            f"compute it again: {command_for(source.stored.provenance)}"
        )
    if without:
        return
    yield from _counted_twice(sources)
    first, *others = sources
    for other in others:
        yield from _differing_lines(_must_agree(first), _must_agree(other), first, other, _REMEDY)
        ours, theirs = _eva_settings(first, changes), _eva_settings(other, changes)
        yield from _differing_lines(ours, theirs, first, other, "; say which with {name}=...")


def command_for(provenance: Provenance) -> str:
    """Return the command that computes an artifact again, so that it keeps what was summed up."""
    defaults = config_groups()
    words = [
        shlex.quote(f"{group}.{key}={_hydra_word(value)}")
        for group in _COMMAND_GROUPS
        for key, value in provenance.config.get(group, {}).items()
        if value != plain_value(getattr(defaults[group](), key, None)) and key != "overwrite"
    ]
    return " ".join(["python jobs/precompute.py", *words, "solver=covariance", "solver.keep_covariance=true"])


def leaves(merged_from: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the runs that went into a merged artifact, through any number of merges."""
    for entry in merged_from:
        if entry["merged_from"]:
            yield from leaves(entry["merged_from"])
        else:
            yield entry


def _counted_twice(sources: Sequence[MergeSource]) -> Iterator[str]:
    """Yield runs that are in two sources: the same artifact, one derived from it, or within one that was merged."""
    holder: dict[str, str] = {}
    for source in sources:
        merged = source.stored.provenance.merged_from
        inside = [(leaf["fingerprint"], leaf["covariance_sha256"]) for leaf in leaves(merged or ())]
        runs = [name for each in [*inside, (source.fingerprint, source.sha256)] for name in _names_of_run(*each)]
        for run in runs:
            if run in holder:
                yield (
                    f"{source.said} holds the same sums as {holder[run]} ({run[:28]}...): give each artifact once; to "
                    "count its rows more often, give it a --weight"
                )
                break
        else:
            holder |= dict.fromkeys(runs, source.said)


def _names_of_run(fingerprint: str, sha256: str | None) -> tuple[str, str]:
    """Return by what a run is known: computed twice it has other bytes, derived from it is another artifact."""
    return f"fingerprint {fingerprint}", f"sha256 {sha256}"


def _differing_lines(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], first: MergeSource, other: MergeSource, remedy: str
) -> Iterator[str]:
    for name in {**ours, **theirs}:
        a, b = _first_difference(ours.get(name), theirs.get(name))
        if a != b:
            differ = f"{_short_value(a)} in {first.said}, {_short_value(b)} in {other.said}"
            yield f"{name}: {differ}{remedy.format(name=name)}"


_REMEDY = "; only artifacts of one model, with the same layers and tokens that count, add up"


def _first_difference(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Return the first items in which two tuples differ; anything else as it is."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        if len(ours) != len(theirs):
            return f"{len(ours)} of them", f"{len(theirs)} of them"
        return next(((a, b) for a, b in zip(ours, theirs, strict=True) if a != b), (ours, theirs))
    return ours, theirs


def _must_agree(source: MergeSource) -> dict[str, Any]:
    """Return by name what sources must have in common, for their rows are of these."""
    facts, eva, plan = source.stored.provenance, source.stored.eva, source.state.plan
    model = {f"the base model's {key}": value for key, value in facts.model.items() if key not in _NOT_MODEL}
    tokenizer = {f"the tokenizer's {key}": value for key, value in facts.tokenizer.items()}
    return {
        **model,
        **tokenizer,
        "layers": tuple((each.name, each.in_features, each.out_features, each.transposed) for each in plan.layers),
        "layers that share an input": tuple(group.members for group in plan.groups),
        "eva.label_mask_value": eva.label_mask_value if eva.use_label_mask else "unused (eva.use_label_mask=false)",
    }


def _eva_settings(source: MergeSource, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of EVA that are not given anew."""
    eva = {f"eva.{key}": getattr(source.stored.eva, key) for key in MERGED_SETTINGS if key not in changes}
    if "eva.rank_pattern" in eva:
        eva["eva.rank_pattern"] = list(eva["eva.rank_pattern"].items())  # of patterns the first that fits counts
    return eva


def _short_value(value: Any) -> str:
    text = shown_value(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _hydra_word(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {_hydra_word(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra_word, value)) + "]"
    return value if isinstance(value, str) and _UNQUOTED.fullmatch(value) else json.dumps(value)
