"""What the benchmark measures beside whole runs: memory, solvers, scaling over workers, growth with the problem.

Each function is to be run in a fresh process.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from eva_dist.calibration.controller import PointEnd, PointResult, StepDecision
from eva_dist.calibration.group_svds import make_tracker
from eva_dist.calibration.observer import PassObserver
from eva_dist.config import Config, Dtype, Exchange, SolverConfig, SolverName
from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.run.prepare import Prepared, assignment, prepare
from jobs.contenders import Floor, all_active, begin, in_dtype, median, run_to_end, session


def memory(run: Prepared, threads: int, steps: int) -> dict[str, float]:
    """Measure what a worker holds beyond the model and the largest of its minibatches, all groups active.

    Returns:
        `tracker_bytes`: the trackers' own size; `above_forward_bytes`: the trackers and what peaks above
        the bare forward of the same tokens, over all steps; `forward_bytes`: that forward's peak.
    """
    worker = session(run, threads)
    plan = begin(worker, run)
    floor = Floor(worker)
    decisions = [all_active(plan, step) for step in range(steps)]
    for decision in decisions[:2]:  # the first states are made; the profiler sees only the end of what it saw begin
        _peak_memory(worker.step, decision)
    decisions = decisions[2:]
    forward = max(_peak_memory(floor.step, decision) for decision in decisions)
    whole = max(_peak_memory(worker.step, decision) for decision in decisions)
    trackers = tensor_bytes(worker.svds)
    worker.leave()
    return {
        "tracker_bytes": trackers,
        "above_forward_bytes": trackers + whole - forward,
        "forward_bytes": forward,
        "memory_above_forward_vs_trackers": (trackers + whole - forward) / trackers,
    }


@dataclass(frozen=True)
class SolverRow:
    """One tracker on real activations: milliseconds an update, and the deficit after the last one."""

    name: str
    milliseconds: float
    deficit_median: float
    deficit_worst: float
    updates: int


def solvers(run: Prepared, threads: int, updates: int, most_groups: int) -> list[SolverRow]:
    """Time trackers on the same updates: the inputs of up to `most_groups` groups, spread over the model.

    The first row is PEFT's own class. Groups are taken in turn by all trackers, so that a noisy
    machine disturbs them alike. The deficit is 1 - captured variance / best possible, in float64.
    """
    from peft.utils.incremental_pca import IncrementalPCA

    worker = session(in_dtype(run, Dtype.float32), threads)
    plan = begin(worker, run)
    chosen = [plan.groups[i] for i in _spread_indices(len(plan.groups), most_groups)]
    rows: dict[int, list[Tensor]] = {group.index: [] for group in chosen}
    for step in range(updates):
        worker.context.feed.rows(step, list(rows), lambda group, x_TD: rows[group].append(x_TD.clone()))
    worker.leave()
    trackers = {
        "PEFT IncrementalPCA": None,
        "subspace (default)": SolverConfig(),
        "subspace, 2 power steps": SolverConfig(power_steps=2),
        "subspace, oversampling 16": SolverConfig(oversampling=16),
        "subspace, oversampling 64": SolverConfig(oversampling=64),
        "incremental": SolverConfig(SolverName.incremental),
    }
    seconds, deficits = dict.fromkeys(trackers, 0.0), {name: list[float]() for name in trackers}
    for group in chosen:
        stream = rows.pop(group.index)
        scatter_DD, best = _exact_scatter(stream, group.n_components)
        for name, config in trackers.items():
            started = time.perf_counter()
            if config is None:
                pca = IncrementalPCA(group.n_components, copy=True, lowrank=True, lowrank_seed=42)
                for x_TD in stream:
                    pca.partial_fit(x_TD)
                v_KD = pca.components_
            else:
                tracker, state = make_tracker(config, group.n_components), None
                for x_TD in stream:
                    state = tracker.update(state, x_TD)
                    v_KD = tracker.components(state).v_KD
            seconds[name] += time.perf_counter() - started
            v_KD = v_KD.double()
            deficits[name].append(float(1 - ((v_KD @ scatter_DD) * v_KD).sum() / best))
    count = len(chosen) * updates
    return [
        SolverRow(name, 1e3 * seconds[name] / count, median(deficits[name]), max(deficits[name]), count)
        for name in trackers
    ]


@dataclass(frozen=True)
class ScalingRow:
    """A gang of `workers`, all groups active: SVD seconds summed over workers, and what was sent."""

    workers: int
    exchange: str
    steps: int
    svd_processor_seconds: float
    sent_bytes_per_token: float
    pass_seconds: float


class _KeepsEnds(PassObserver):
    """Keeps how the points of a pass ended."""

    def __init__(self) -> None:
        self.ends: list[PointEnd] = []

    def on_point_end(self, key: str, end: PointEnd) -> None:
        """Keep it."""
        self.ends.append(end)


def scaling(run: Prepared, workers: int, exchange: Exchange, steps: int) -> ScalingRow:
    """Run a gang for a few steps, one thread a worker; processor time, for workers may outnumber the cores."""
    from eva_dist.cluster.attempts import run_on_gang
    from eva_dist.cluster.place import open_place

    config = run.config
    cluster = replace(config.cluster, num_workers=workers, exchange=exchange, threads_per_worker=1, address=None)
    config = replace(config, cluster=cluster, eva=replace(config.eva, tau=1.0, max_steps=steps))
    with open_place(cluster) as place:
        observer = _KeepsEnds()
        run_on_gang(assignment(replace(run, config=config)), observer, place)
    (end,) = observer.ends
    assert isinstance(end, PointResult), end
    state = end.state
    return ScalingRow(
        workers,
        exchange.value,
        state.steps,
        state.svd_processor_seconds,
        state.sent_bytes / state.tokens,
        state.pass_seconds,
    )


@dataclass(frozen=True)
class PrecisionRow:
    """A forward in another dtype against one in float32, after the same steps with all groups active.

    `ranks_changed` counts layers; overlap is the mean squared cosine of the principal angles and
    cosines are |cos| by component, both over the ranks that float32 allocates.
    """

    dtype: str
    ranks_changed: int
    largest_change: int
    overlap_median: float
    overlap_worst: float
    cosine_median: float


def precision(run: Prepared, threads: int, dtypes: Sequence[Dtype], steps: int) -> list[PrecisionRow]:
    """Compare ranks and vectors of forwards in other dtypes with those of float32."""
    exact = _after_steps(run, threads, Dtype.float32, steps)
    rows = []
    for dtype in dtypes:
        found = _after_steps(run, threads, dtype, steps)
        overlaps, cosines = [], list[float]()
        for group in exact.state.plan.groups:
            rank = exact.state.group_rank(group.index)
            a_RD, b_RD = (r.components[group.index].v_KD[:rank].double() for r in (exact, found))
            if rank:
                overlaps.append(float((a_RD @ b_RD.mT).square().sum() / rank))
                cosines += (a_RD * b_RD).sum(1).abs().tolist()
        changes = [abs(found.state.ranks[name] - rank) for name, rank in exact.state.ranks.items()]
        moved = sum(change > 0 for change in changes)
        rows.append(PrecisionRow(dtype.value, moved, max(changes), median(overlaps), min(overlaps), median(cosines)))
    return rows


def _after_steps(run: Prepared, threads: int, dtype: Dtype, steps: int) -> PointResult:
    run = in_dtype(run, dtype)
    worker = session(run, threads)
    result = run_to_end(worker, begin(worker, run), 1.0, steps, lambda decision: [worker.step(decision)])
    worker.leave()
    return result


@dataclass(frozen=True)
class GrowthRow:
    """Seconds a step and bytes of trackers when one setting is changed, all groups active."""

    changed: str
    value: str
    tokens: float
    forward_seconds: float
    svd_seconds: float
    tracker_bytes: int


def growth(config: Config, threads: int, steps: int) -> list[GrowthRow]:
    """Measure steps of each of `growth_cases`."""
    return [_growth_row(changed, value, prepare(case), threads, steps) for changed, value, case in growth_cases(config)]


def growth_cases(config: Config) -> list[tuple[str, str, Config]]:
    """Change the samples a step, the blocks and r, one at a time: what, to what, and the settings."""
    blocks = config.model.config_overrides.get("num_hidden_layers", 6)
    cases = [("samples a step", str(n), replace(config, data=replace(config.data, step_size=n))) for n in (2, 4, 8)]
    for n in (blocks // 2, blocks, 2 * blocks):
        overrides = {**config.model.config_overrides, "num_hidden_layers": n}
        cases.append(("blocks", str(n), replace(config, model=replace(config.model, config_overrides=overrides))))
    return cases + [("r", str(r), replace(config, eva=replace(config.eva, r=r))) for r in (8, 16, 32)]


def _growth_row(changed: str, value: str, run: Prepared, threads: int, steps: int) -> GrowthRow:
    worker = session(run, threads)
    plan = begin(worker, run)
    reports = [worker.step(all_active(plan, step)) for step in range(steps)]
    worker.leave()
    timed = reports[2:]  # the first update of a group is another one
    tokens = statistics.fmean(report.tokens for report in timed)
    forward, svd = (statistics.fmean(report.seconds[phase] for report in timed) for phase in ("forward", "svd"))
    return GrowthRow(changed, value, tokens, forward, svd, tensor_bytes(worker.svds))


@dataclass(frozen=True)
class UpdateRow:
    """Milliseconds of one tracker update of T rows by D features with K components, synthetic rows."""

    rows: int
    in_features: int
    n_components: int
    milliseconds: float


def updates(threads: int, repeats: int) -> list[UpdateRow]:
    """Time the default tracker over shapes."""
    torch.set_num_threads(threads)
    shapes = [(512, 576, 32), (1024, 576, 32), (2048, 576, 32), (512, 1536, 32), (512, 4096, 32), (512, 576, 16)]
    shapes += [(512, 576, 64), (512, 576, 128)]
    found = []
    for rows, in_features, n_components in shapes:
        tracker, state = make_tracker(SolverConfig(), n_components), None
        scale_D = torch.arange(1, in_features + 1) ** -0.5
        stream = [torch.randn(rows, in_features) * scale_D for _ in range(3)]
        for x_TD in stream:
            state = tracker.update(state, x_TD)
        started = time.perf_counter()
        for i in range(repeats):
            state = tracker.update(state, stream[i % len(stream)])
        found.append(UpdateRow(rows, in_features, n_components, 1e3 * (time.perf_counter() - started) / repeats))
    return found


def _peak_memory(work: Callable[[StepDecision], Any], decision: StepDecision) -> int:
    """Run one step and return the peak of bytes allocated for tensors meanwhile, above what was allocated before."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work(decision)
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at the first profile: else several lines for each of them
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work(decision)
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = profiled.profiler.kineto_results.events()
    return max(itertools.accumulate((e.nbytes() for e in events if e.name() == "[memory]"), initial=0))


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested dataclasses and mappings, memory that several share counted once."""
    storages: dict[int, int] = {}

    def visit(inner: Any) -> None:
        if isinstance(inner, Tensor):
            storages[inner.untyped_storage().data_ptr()] = inner.untyped_storage().nbytes()
        elif is_dataclass(inner):
            for f in fields(inner):
                visit(getattr(inner, f.name))
        elif isinstance(inner, Mapping):
            for item in inner.values():
                visit(item)

    visit(value)
    return sum(storages.values())


def _spread_indices(count: int, most: int) -> list[int]:
    """Return up to `most` indices below `count`, evenly spread."""
    return sorted({round(i * (count - 1) / max(1, min(most, count) - 1)) for i in range(min(most, count))})


def _exact_scatter(stream: Sequence[Tensor], n_components: int) -> tuple[Tensor, Tensor]:
    """Return the exact scatter matrix of all rows, float64, and the variance that the best components capture."""
    tracker, state = CovarianceTracker(n_components), None
    for x_TD in stream:
        state = tracker.update(state, x_TD)
    assert state is not None
    return state.scatter_DD, torch.linalg.eigvalsh(state.scatter_DD).flip(0)[:n_components].sum()
