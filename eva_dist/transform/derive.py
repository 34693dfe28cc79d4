"""A new artifact from a stored one, with no model and no data, where the stored state suffices.

A pass is decided by its layers' ranks and by `tau`; what else EVA sets is applied to its result. So there
are two kinds of derivation:

- **exact**: the pass would have been the same (`whiten`, `lora_alpha`, `adjust_scaling_factors`, a `rho` that
  rounds to the same ranks, ...). The tensors are those of a run with these settings, to the bit, and so is the
  fingerprint: such a run is answered from the store.
- **near**: other maximum ranks, another `tau` or `budget`. A run would have followed another number of components,
  and stopped at another step; here the stored vectors are used again. Ranks are handed out anew over their ratios,
  and each layer's components must have stored cosines of at least `tau`. The artifact says what it was derived from, in
  its fingerprint too: it never stands for a run.
"""

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from eva_dist import __version__
from eva_dist.artifact.facts import LayerFacts, Provenance, layer_facts
from eva_dist.artifact.load import source_folder
from eva_dist.artifact.restore import Stored, restore_artifact
from eva_dist.artifact.write import build_artifact
from eva_dist.calibration.controller import GroupState, PointResult, PointState, Stop, first_state, reallocated
from eva_dist.config import Budget, EvaConfig, OnMaxSteps
from eva_dist.errors import DerivationError, LayerError
from eva_dist.hashing import fingerprint
from eva_dist.methods.eva import AFTER_THE_PASS, Eva
from eva_dist.modeling.peft_rules import Targets, is_targeted, layer_r, refuse_idle_patterns
from eva_dist.numerics.components import Components
from eva_dist.plan import InputGroup, Layer, Plan, among, make_layer, make_plan
from eva_dist.run.outcome import Outcome
from eva_dist.run.prepare import default_revision
from eva_dist.run.publish import outcome
from eva_dist.store.artifact_ref import parse_artifact_ref
from eva_dist.store.name_rules import check_names
from eva_dist.store.store import Store

_BY_LAYERS = ("rho", "r", "rank_pattern", "target_modules")
"""Settings that reach the pass through the layers' ranks alone."""
_LIMITS = ("max_steps", "on_max_steps")
_FIXED = {
    "use_label_mask": "it decides which tokens count, and the pass has counted them",
    "label_mask_value": "it decides which tokens count, and the pass has counted them",
    "exclude_modules": "which other layers it would leave out or take in is not known without the model",
}
_NOT_DECISIVE = ("on_max_steps", "rank_pattern", "target_modules")
"""Not among the settings in `decisive`: they do not decide, or the layers say it."""
_SHARED = "shared_tracker"
_OR_RUN = "or run jobs/precompute.py with these settings"
_MOST_LISTED = 10


def derive_and_publish(
    source: str, changes: Mapping[str, Any], store_url: str, repo_id: str | None = None, revision: str | None = None
) -> Outcome:
    """Derive an artifact and publish it, or answer from the store.

    Args:
        source: any word for an artifact (`store/artifact_ref.py`).
        changes: settings of EVA by name, those that differ from the source's.
        store_url: where to publish.
        repo_id: None: the one that the source was named by, else the one it was first published under.
        revision: None: made of what sweeps vary, as for a run.

    Raises:
        DerivationError: what is stored does not suffice; nothing is published.
        IntegrityError, ArtifactNotFoundError, StoreError: source or store cannot be used; likewise.
    """
    started = time.perf_counter()
    store = Store(store_url)
    stored = restore_artifact(source_folder(source, store.url))
    derived = derive(stored, changes)
    key = derived.provenance.fingerprint
    repo_id = repo_id or parse_artifact_ref(source, store.url).repo_id or stored.provenance.repo_id
    revision = revision or default_revision(
        derived.eva, derived.provenance.decisive, lambda name: store.fingerprint_of(repo_id, name)
    )
    return publish_once(store, key, repo_id, revision, started, nullcontext(derived))


def publish_once(
    store: Store,
    key: str,
    repo_id: str,
    revision: str,
    started: float,
    made: AbstractContextManager[Stored],
) -> Outcome:
    """Publish what has the fingerprint `key` under this name, or answer from the store.

    `made` gives what it is built from, and is entered only if the store does not have it; `started` is when the
    command began, by `time.perf_counter`.
    """
    check_names(repo_id, revision)
    if store.find(key) is not None:
        published, status = store.point(key, repo_id, revision), "cached"
    else:
        with made as stored:
            named = _named_as(stored, store, repo_id, revision)
            published = store.publish(
                key, repo_id, revision, lambda folder: build_artifact(folder, named.result, named.eva, named.provenance)
            )
        status = published.manifest["status"]
    return outcome(published, repo_id, revision, status, time.perf_counter() - started)


def derive(source: Stored, changes: Mapping[str, Any]) -> Stored:
    """Return what an artifact with some settings of EVA changed is built from; names and time are the source's.

    Raises:
        DerivationError: one line for each setting that cannot be derived, or the layers whose stored components
            have not converged to `tau`, unless `on_max_steps=accept`.
    """
    changed = {key: value for key, value in typed_changes(changes).items() if value != getattr(source.eva, key)}
    eva = replace(source.eva, **changed)
    refuse_problems([*eva.problems(), *_underivable_settings(source, changed)])
    plan = plan_of(source, eva, changed)
    refuse_problems(_uncovered_groups(source, plan, changed))
    result = _pass_of_plan(source.result, plan, eva)
    _refuse_unconverged(result, eva, source.result.state)
    return Stored(result, eva, _derived_provenance(source, plan, eva, changed))


def typed_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those numbers as floats that may be typed as whole ones: they are part of fingerprints."""
    return {key: float(v) if key in ("rho", "tau", "lora_alpha") else v for key, v in changes.items()}


def refuse_problems(problems: Iterable[str]) -> None:
    """Raise `DerivationError` with a line for each."""
    if said := "\n".join(problems):
        raise DerivationError(said)


def _underivable_settings(source: Stored, changed: Mapping[str, Any]) -> Iterator[str]:
    """Yield settings that no stored state can answer, or not this one."""
    state = source.result.state
    for key, value in changed.items():
        if key in _FIXED:
            yield f"eva.{key}={shown_value(value)} cannot be derived: {_FIXED[key]}; leave it, {_OR_RUN}"
        elif key not in (*_BY_LAYERS, *_LIMITS, *AFTER_THE_PASS, "tau", "budget"):
            yield f"eva.{key}={shown_value(value)} cannot be derived; leave it, {_OR_RUN}"
    steps = changed.get("max_steps", state.max_steps)
    if "max_steps" in changed and (state.stop is not Stop.converged or steps < state.steps):
        how = "converged in" if state.stop is Stop.converged else "had not converged after"
        yield (
            f"eva.max_steps={steps} cannot be derived: the source's pass {how} {state.steps} steps; "
            f"leave it at {state.max_steps}, {_OR_RUN}"
        )
    theirs, ours = source.eva.target_modules, changed.get("target_modules", source.eva.target_modules)
    if ours != theirs and not (isinstance(ours, list) and isinstance(theirs, list) and set(ours) <= set(theirs)):
        yield (
            f"eva.target_modules={shown_value(ours)} cannot be derived: it must be a list of names that are all "
            f"among the source's, {shown_value(theirs)}; without the model nothing else is known to be contained; "
            f"leave it, {_OR_RUN}"
        )


def plan_of(source: Stored, eva: EvaConfig, changed: Mapping[str, Any]) -> Plan:
    """Return the plan of these settings, made of the source's layers and input groups."""
    before = source.result.state.plan
    try:
        layers = [
            _layer_with_rank(layer, layer_r(layer.name, eva.r, eva.rank_pattern), eva.rho)
            for layer in before.layers
            if "target_modules" not in changed or is_targeted(layer.name, eva)
        ]
        if not layers:
            raise LayerError(f"eva.target_modules={shown_value(eva.target_modules)} names none of the source's layers")
        refuse_idle_patterns(eva.rank_pattern, Targets(tuple(layers), ()))
    except (LayerError, re.error) as error:
        raise DerivationError(str(error)) from error
    return make_plan(layers, among(layers, [group.members for group in before.groups]), budget=eva.budget)


def _layer_with_rank(layer: Layer, r: int, rho: float) -> Layer:
    return make_layer(layer.name, layer.in_features, layer.out_features, r, rho, layer.transposed)


def _uncovered_groups(source: Stored, plan: Plan, changed: Mapping[str, Any]) -> Iterator[str]:
    """Yield what asks for more components than the source keeps."""
    kept = source.result.state.plan.max_ranks()
    short = [group for group in plan.groups if group.n_components > kept[group.tap]]
    if not short:
        return
    settings = " ".join(
        f"eva.{key}={shown_value(changed[key])}" for key in ("r", "rho", "rank_pattern") if key in changed
    )
    lines = [f"  {group.tap}: {group.n_components} components, {kept[group.tap]} are stored" for group in short]
    yield (
        f"{settings} cannot be derived: {len(short)} of {len(plan.groups)} input groups need more components than the "
        f"source keeps (r={source.eva.r}, rho={source.eva.rho}); lower r * rho there, {_OR_RUN}\n" + _first_lines(lines)
    )


def _pass_of_plan(source: PointResult, plan: Plan, eva: EvaConfig) -> PointResult:
    """Return the source's pass as of this plan: components cut to its counts, ranks handed out anew."""
    state = source.state
    index = {name: group.index for group in state.plan.groups for name in group.members}
    old = {group.index: index[group.tap] for group in plan.groups}
    new = {before: after for after, before in old.items()}
    known = first_state(plan, Eva(eva.tau), eva.max_steps, eva.on_max_steps is OnMaxSteps.accept)
    known = replace(
        known,
        groups=tuple(_cut_group(state.groups[old[group.index]], group) for group in plan.groups),
        steps=state.steps,
        tokens=state.tokens,
        epoch=state.epoch,
        exhausted=state.exhausted,
        seconds=state.seconds,
        history=tuple(replace(row, group=new[row.group]) for row in state.history if row.group in new),
        pass_seconds=state.pass_seconds,
    )
    # Components lie in order of strength, so the first are those that a smaller tracker is about.
    components = {
        group.index: Components(
            found.v_KD[: group.n_components],
            found.singular_values_K[: group.n_components],
            found.explained_variance_ratio_K[: group.n_components],
        )
        for group in plan.groups
        for found in [source.components[old[group.index]]]
    }
    # Sums of some inputs alone would pass for those of all of them when they are merged.
    same_inputs = [group.tap for group in plan.groups] == [group.tap for group in state.plan.groups]
    covariance = source.covariance if same_inputs else None
    return PointResult(reallocated(known), components, source.world_size, covariance)


def _cut_group(known: GroupState, group: InputGroup) -> GroupState:
    ratios_K, cosines_K = (
        None if x_K is None else x_K[: group.n_components] for x_K in (known.ratios_K, known.cosines_K)
    )
    return replace(known, ratios_K=ratios_K, cosines_K=cosines_K)


def _refuse_unconverged(result: PointResult, eva: EvaConfig, before: PointState) -> None:
    """Raise unless the stored cosines of all components that get a rank are at least `tau`, or that is accepted.

    A smaller `rho` takes ranks from some layers and gives them to others: these may get components that
    nobody waited for when the pass left the layer.
    """
    if eva.on_max_steps is OnMaxSteps.accept:
        return
    layers = layer_facts(result)
    short = [facts for facts in layers if not facts.converged]
    if not short:
        return
    lowest = [facts.shortfall(eva.tau)[1] for facts in short]
    proven = [cosine for cosine in lowest if cosine is not None]
    looser = (
        f"use eva.tau <= {math.floor(min(proven) * 1e4) / 1e4:g}, "
        if len(proven) == len(lowest) and min(proven) > 0
        else ""
    )
    raise DerivationError(
        f"eva.tau={eva.tau} is not shown by the source: these settings give {len(short)} of {len(layers)} layers "
        f"components whose stored cosines are below it; {looser}take them as they are with eva.on_max_steps=accept, "
        f"{_OR_RUN}\n" + _first_lines([_shortfall_line(facts, eva.tau, before) for facts in short])
    )


def _shortfall_line(facts: LayerFacts, tau: float, before: PointState) -> str:
    below, lowest = facts.shortfall(tau)
    if lowest is None:
        return f"  {facts.name}: only {facts.known.updates} updates, so no cosine"
    rank = max(before.ranks[name] for name in facts.group.members)
    was = f" (the source gave {rank})" if rank != facts.group_rank else ""
    return f"  {facts.name}: {below} of {facts.group_rank} components{was} below, lowest cosine {lowest:.6f}"


def _derived_provenance(source: Stored, plan: Plan, eva: EvaConfig, changed: Mapping[str, Any]) -> Provenance:
    """Return the source's provenance with settings, `decisive` and fingerprint of the derived artifact."""
    before = source.provenance
    settings = before.decisive["eva"] | {key: plain_value(v) for key, v in changed.items() if key not in _NOT_DECISIVE}
    if eva.budget is Budget.ranks:
        settings.pop("budget", None)  # as in `prepare`: PEFT's kind goes without a word
    now = {
        "eva": settings,
        "layers": [[layer.name, layer.r, layer.max_rank] for layer in plan.layers],
    }
    # the fingerprint of a point that shared its tracker names its pass a second time, by a hash
    free = {*AFTER_THE_PASS, "on_max_steps"} | (set() if _SHARED in before.decisive else {*_BY_LAYERS, *_LIMITS})
    same_pass = now["layers"] == before.decisive["layers"] and changed.keys() <= free
    derived_from = before.derived_from
    # Exact: under the fingerprint of the run itself, which is then answered from here. What is near names its source
    # instead, so that no run is ever answered with it; nor does what has no run's fingerprint gain one.
    if same_pass or not before.is_own_run:
        decisive = before.decisive | now
    else:
        decisive = {"method": before.decisive["method"], "derived_from": before.fingerprint, **now}
    if decisive != before.decisive and before.is_own_run:
        derived_from = {
            "fingerprint": before.fingerprint,
            "eva": before.decisive["eva"],
            "exact": same_pass,
            "eva_dist": __version__,
        }
    config = before.config | {"eva": before.config["eva"] | {key: plain_value(value) for key, value in changed.items()}}
    return replace(
        before, fingerprint=fingerprint(decisive), decisive=decisive, config=config, derived_from=derived_from
    )


def _named_as(derived: Stored, store: Store, repo_id: str, revision: str) -> Stored:
    """Return what is built with the names under which it is published."""
    before = derived.provenance
    artifact = {"repo_id": repo_id, "revision": revision, "overwrite": False}
    provenance = replace(
        before,
        config=before.config | {"store": {"url": store.url}, "artifact": artifact},
        url=store.snapshot_url(before.fingerprint),
        repo_id=repo_id,
        revision=revision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(derived, provenance=provenance)


def plain_value(value: Any) -> Any:
    """Return a setting as a manifest has it: an enum's value."""
    return value.value if isinstance(value, Enum) else value


def shown_value(value: Any) -> str:
    """Return a setting as a person types it."""
    return str(plain_value(value)).replace("'", "")


def _first_lines(lines: list[str]) -> str:
    more = len(lines) - _MOST_LISTED
    return "\n".join([*lines[:_MOST_LISTED], *([f"  and {more} more"] if more > 0 else [])])
