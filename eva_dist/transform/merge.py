"""One artifact of several, as if all had been one run: sums of `solver=covariance` over disjoint rows add up.

    artifacts with covariance.safetensors -> do they agree -> sums, components (a group at a time) -> ranks -> artifact

Exact to float64 rounding, in any order and any nesting; sources are always added in the order of their
fingerprints, so the same ones give the same bytes. A weight counts each row of its source so many times.

What a merged artifact is not: a run. It has no cosines, for nothing was followed from step to step; a layer
counts as converged if it had in every source. Steps, tokens and seconds are sums.

Memory: the sums of one input group at a time, about 6 matrices of D x D in float64 at the peak, however many
sources and layers there are; on disk the new sums, in the folder for temporary files (`TMPDIR`).
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from eva_dist.artifact.covariance import CovarianceFile, open_covariance, write_covariance
from eva_dist.artifact.facts import Provenance
from eva_dist.artifact.file_names import COVARIANCE_FILE
from eva_dist.artifact.load import source_folder
from eva_dist.artifact.restore import Stored, restore_artifact
from eva_dist.calibration.controller import GroupState, PointState, add_seconds, first_state, reallocated
from eva_dist.calibration.engine import finish
from eva_dist.config import EvaConfig, OnMaxSteps
from eva_dist.errors import DerivationError, IntegrityError, StoreError
from eva_dist.hashing import fingerprint
from eva_dist.methods.eva import NAME, Eva, decisive_settings
from eva_dist.numerics.components import Components
from eva_dist.numerics.covariance import CovarianceState, CovarianceTracker, merge, scaled, to_packed
from eva_dist.plan import InputGroup, Plan
from eva_dist.run.outcome import Outcome
from eva_dist.run.prepare import versions
from eva_dist.store.artifact_reader import REMEDY
from eva_dist.store.artifact_ref import parse_artifact_ref
from eva_dist.store.snapshot import folder_snapshot
from eva_dist.store.store import Store
from eva_dist.transform.derive import plain_value, plan_of, publish_once, refuse_problems, typed_changes
from eva_dist.transform.mergeable import MergeSource, leaves, problems

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergePlan:
    """What will be computed, in the order in which it is added up; `decisive` decides the numbers."""

    sources: tuple[MergeSource, ...]
    eva: EvaConfig
    plan: Plan
    decisive: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Name of the merged artifact."""
        return fingerprint(self.decisive)


def merge_and_publish(
    sources: Sequence[str],
    weights: Sequence[float],
    changes: Mapping[str, Any],
    store_url: str,
    repo_id: str | None = None,
    revision: str | None = None,
) -> Outcome:
    """Merge artifacts and publish the sum, or answer from the store.

    Args:
        sources: two or more, as for `derive_and_publish`.
        weights: how often a row of each source counts; empty: once.
        changes: settings of EVA by name; the others are those in which the sources agree.
        store_url: where to publish.
        repo_id: None: the sources', if they have the same.
        revision: None: `merged-<first 8 digits of the fingerprint>`.

    Raises:
        DerivationError: they do not add up, or keep no sums; nothing is published.
        IntegrityError, ArtifactNotFoundError, StoreError: a source or the store cannot be used; likewise.
    """
    started = time.perf_counter()
    if len(sources) < 2 or len(weights) not in (0, len(sources)):
        raise DerivationError(
            f"{len(sources)} sources and {len(weights)} weights: merge takes two sources or more, and one --weight "
            "for each in their order, or none; to count a single one twice changes nothing"
        )
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise DerivationError(f"--weight {weight} must be > 0: how often each row of its source counts; 1 is usual")
    store = Store(store_url)
    read = [
        _read_source(said, source_folder(said, store.url), weight)
        for said, weight in zip(sources, weights or [1.0] * len(sources), strict=True)
    ]
    planned = plan_merge(read, changes)
    repo_id = repo_id or _common_repo_id(planned.sources, store.url)
    revision = revision or f"merged-{planned.fingerprint[:8]}"
    return publish_once(store, planned.fingerprint, repo_id, revision, started, _added_up(planned))


@contextmanager
def _added_up(planned: MergePlan) -> Iterator[Stored]:
    """Give what the merged artifact is built from, for as long as its sums are in the folder for temporary files."""
    with TemporaryDirectory(prefix="eva-dist-") as scratch:
        try:
            summed = add_up(planned, Path(scratch))
        except OSError as error:
            raise StoreError(
                f"{COVARIANCE_FILE} cannot be written to {scratch} ({error}); make room there, or let TMPDIR name "
                "a folder that has it"
            ) from error
        yield summed


def _read_source(said: str, folder: Path, weight: float) -> MergeSource:
    snapshot = folder_snapshot(folder)
    sums = snapshot.files.get(COVARIANCE_FILE)
    return MergeSource(said, restore_artifact(folder, snapshot), float(weight), None if sums is None else sums.sha256)


def plan_merge(sources: Sequence[MergeSource], changes: Mapping[str, Any]) -> MergePlan:
    """Return what merging these gives, without reading their sums.

    Raises:
        DerivationError: one line for each thing in which they do not agree, or that cannot be had of them.
    """
    refuse_problems(problems(sources, changes))
    # Sums of floats depend on their order: this one is the same however the sources were typed.
    in_order = tuple(sorted(sources, key=lambda source: source.fingerprint))
    for data, same in _same_data(in_order).items():
        _log.warning("%s are of the same data (%s): its rows count once for each", " and ".join(same), data)
    first = in_order[0].stored
    typed = typed_changes(changes)
    eva = replace(
        first.eva,
        **typed,
        max_steps=sum(source.state.steps for source in in_order),
        on_max_steps=OnMaxSteps.accept,
    )
    refuse_problems(eva.problems())
    plan = plan_of(first, eva, typed)
    refuse_problems(_too_few_rows(in_order, plan))
    decisive = {
        "method": NAME,
        "merged_from": [{"fingerprint": source.fingerprint, "weight": source.weight} for source in in_order],
        "eva": decisive_settings(eva),
        "layers": [[layer.name, layer.r, layer.max_rank] for layer in plan.layers],
    }
    return MergePlan(in_order, eva, plan, decisive)


def add_up(planned: MergePlan, scratch: Path) -> Stored:
    """Return what the merged artifact is built from; its sums are a file in `scratch`.

    Raises:
        IntegrityError: a source's sums do not fit its manifest.
        OSError: `scratch` has no room.
    """
    sources, plan = planned.sources, planned.plan
    components: dict[int, Components] = {}
    with ExitStack() as stack:
        files = [stack.enter_context(open_covariance(_covariance_of(source))) for source in sources]
        for source, file in zip(sources, files, strict=True):
            _refuse_missing(source, file)

        def fetch(group: InputGroup) -> dict[str, Tensor]:
            total = _sum_of_group(sources, files, group)
            components[group.index] = CovarianceTracker(group.n_components).components(total)
            return to_packed(total)

        path = scratch / COVARIANCE_FILE
        write_covariance(path, [group for group in plan.groups if any(group in file for file in files)], fetch)
    result = finish(_joined_state(planned, components), components, covariance=path)
    return Stored(result, planned.eva, _merged_provenance(planned))


def _refuse_missing(source: MergeSource, file: CovarianceFile) -> None:
    """Raise `IntegrityError` unless the file has the groups that were updated, and no others."""
    for group in source.state.plan.groups:
        updates = source.state.groups[group.index].updates
        if (updates > 0) is not (group in file):
            raise IntegrityError(
                f"{file.path} has {'no' if updates else 'a'} sum for {group.tap}, which was updated {updates} times "
                f"by its manifest; {REMEDY}"
            )


def _sum_of_group(
    sources: Sequence[MergeSource], files: Sequence[CovarianceFile], group: InputGroup
) -> CovarianceState:
    """Add up a group's sums; two of them are in memory at a time, and their sum."""
    total: CovarianceState | None = None
    for source, file in zip(sources, files, strict=True):
        if group in file:
            state = scaled(file.state(group), source.weight)
            total = state if total is None else merge(total, state)
            del state  # or it stays while the next one is read
    assert total is not None, "only groups that some source has are asked for"
    return total


def _joined_state(planned: MergePlan, components: Mapping[int, Components]) -> PointState:
    """Return the sources' passes as one that made all of their steps."""
    sources, states = planned.sources, [source.state for source in planned.sources]
    known = first_state(planned.plan, Eva(planned.eva.tau), planned.eva.max_steps, accept=True)
    known = replace(
        known,
        groups=tuple(_joined_group(states, group, components.get(group.index)) for group in planned.plan.groups),
        steps=sum(state.steps for state in states),
        tokens=sum(state.tokens for state in states),
        epoch=max(state.epoch for state in states),
        exhausted=any(state.exhausted for state in states),
        seconds=reduce(add_seconds, (state.seconds for state in states), {}),
        pass_seconds=sum(source.state.pass_seconds for source in sources),
    )
    return reallocated(known)


def _joined_group(states: Sequence[PointState], group: InputGroup, components: Components | None) -> GroupState:
    """Return what is known of a group; rows are those that were seen, whatever their weight."""
    theirs = [state.groups[group.index] for state in states]
    cosines = [_lowest_cosine(state, group.index) for state in states]
    proven = [cosine for cosine in cosines if cosine is not None]
    return GroupState(
        ratios_K=None if components is None else components.explained_variance_ratio_K,
        rows=sum(known.rows for known in theirs),
        updates=sum(known.updates for known in theirs),
        skipped=sum(known.skipped for known in theirs),
        # Shown to have converged only if every source was, and then to the loosest tau of them.
        converged_to=min(proven) if len(proven) == len(cosines) else None,
    )


def _lowest_cosine(state: PointState, group: int) -> float | None:
    """Return to which tau a group had converged, over the components that it was given; None: to none."""
    known, rank = state.groups[group], state.group_rank(group)
    if known.updates == 0 or known.converged_to is not None:
        return known.converged_to
    if rank == 0:
        return 1.0
    return None if known.cosines_K is None else float(known.cosines_K[:rank].min())


def _too_few_rows(sources: Sequence[MergeSource], plan: Plan) -> Iterator[str]:
    for group in plan.groups:
        rows = sum(source.state.groups[group.index].rows for source in sources)
        if 0 < rows < group.n_components:
            yield (f"{group.tap}: {group.n_components} components cannot be had of {rows} rows; lower eva.r * eva.rho")


def _merged_provenance(planned: MergePlan) -> Provenance:
    """Return the facts of the merged artifact; names and time are the first source's until it is named."""
    first = planned.sources[0].stored.provenance
    facts = [source.stored.provenance for source in planned.sources]
    eva = {key: plain_value(value) for key, value in vars(planned.eva).items()}
    return replace(
        first,
        fingerprint=planned.fingerprint,
        decisive=dict(planned.decisive),
        config=first.config | {"data": _joined_data_settings(planned.sources), "eva": eva},
        data={
            "digest": fingerprint({"merged": [each.data.get("digest") for each in facts]}),
            **{key: sum(each.data.get(key, 0) for each in facts) for key in ("samples", "blank")},
        },
        versions=versions(),
        world_size=1,
        derived_from=None,
        merged_from=[_describe_source(source) for source in planned.sources],
    )


def _describe_source(source: MergeSource) -> dict[str, Any]:
    facts, state = source.stored.provenance, source.state
    return {
        "fingerprint": source.fingerprint,
        "weight": source.weight,
        "covariance_sha256": source.sha256,
        "repo_id": facts.repo_id,
        "revision": facts.revision,
        "steps": state.steps,
        "tokens": state.tokens,
        "data": {"path": facts.config.get("data", {}).get("path", ""), **facts.data},
        "eva_dist": facts.versions.get("eva-dist"),
        "merged_from": facts.merged_from,
    }


def _joined_data_settings(sources: Iterable[MergeSource]) -> dict[str, Any]:
    """Return the settings of the data: those in which all agree, lists of the others; paths are joined."""
    each = [source.stored.provenance.config.get("data", {}) for source in sources]
    merged = {}
    for key in each[0]:
        values = [settings.get(key) for settings in each]
        merged[key] = values[0] if all(value == values[0] for value in values) else values
        if key == "path" and isinstance(merged[key], list):
            merged[key] = " + ".join(dict.fromkeys(map(str, values)))
    return merged


def _covariance_of(source: MergeSource) -> Path:
    path = source.stored.result.covariance
    assert path is not None, "refused before"
    return path


def _common_repo_id(sources: Sequence[MergeSource], store_url: str) -> str:
    given = {parse_artifact_ref(each.said, store_url).repo_id or each.stored.provenance.repo_id for each in sources}
    names = sorted(given)
    if len(names) > 1:
        raise DerivationError(f"the sources are of different names ({', '.join(names)}); say which with --repo-id")
    return names[0]


def _same_data(sources: Sequence[MergeSource]) -> dict[str, list[str]]:
    """Return data that is in more than one source, by digest, and which ones these are."""
    found: dict[str, list[str]] = {}
    for source in sources:
        facts = source.stored.provenance
        data = [leaf["data"] for leaf in leaves(facts.merged_from)] if facts.merged_from else [facts.data]
        for digest in {str(each["digest"]) for each in data if "digest" in each}:
            found.setdefault(digest, []).append(source.said)
    return {digest: said for digest, said in found.items() if len(said) > 1}
