"""What the benchmark compares, each a function to be run in a fresh process: PEFT, the floor, us, and the truth.

All of them take the same samples in the same steps. "Compute" is everything between a
loaded model and a state dict in memory; loading and writing stand beside it.
"""

import functools
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from eva_dist.artifact.facts import layer_facts
from eva_dist.artifact.write import build_artifact, state_dict
from eva_dist.calibration.controller import PointResult, StepDecision, StepReport, first_state
from eva_dist.calibration.engine import finish, run_pass
from eva_dist.calibration.pass_state import one_point
from eva_dist.calibration.worker import Worker
from eva_dist.config import Dtype
from eva_dist.data import Batching, TokenStream, open_rows
from eva_dist.methods.eva import Eva
from eva_dist.modeling.load import load_model, load_tokenizer
from eva_dist.modeling.taps import ForwardCut, tap_inputs
from eva_dist.numerics.covariance import CovarianceTracker
from eva_dist.plan import Plan
from eva_dist.run.prepare import Prepared, assignment, provenance


@dataclass(frozen=True)
class Contender:
    """One run of one contender.

    Attributes:
        name: what the report calls it.
        compute_seconds: from a loaded model to a state dict in memory.
        seconds: by phase; load and write are not part of compute.
        steps: SVD updates; `tokens` real ones forwarded.
        state_dict: layer to `[rank, in_features]`.
        extra: further figures by name.
    """

    name: str
    compute_seconds: float
    seconds: Mapping[str, float]
    steps: int
    tokens: int
    state_dict: dict[str, Tensor] = field(repr=False, default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second of compute."""
        return self.tokens / self.compute_seconds


def peer(run: Prepared, threads: int) -> Contender:
    """PEFT's `get_eva_state_dict` on one replica: same samples, padded to `data.max_length` as its examples do."""
    from peft import get_eva_state_dict
    from peft.utils.incremental_pca import IncrementalPCA
    from safetensors.torch import save_file

    from eva_dist.modeling.peft_rules import lora_config

    torch.set_num_threads(threads)
    started = time.perf_counter()
    float32 = replace(run.config.model, dtype=Dtype.float32)
    model = load_model(float32, run.task, prefix="", device=_first_device())
    loaded = time.perf_counter()
    data = _PaddedSteps(run)
    spent = {"forward": 0.0, "partial_fit": 0.0}
    config = lora_config(run.config.eva, run.task.value)
    config.target_modules = run.targets.names
    loader = torch.utils.data.DataLoader(data, batch_size=None, collate_fn=data.place)
    ready = time.perf_counter()
    with _timed_calls(IncrementalPCA, "partial_fit", spent), _timed_calls(model, "forward", spent) as forwards:
        found = get_eva_state_dict(model, loader, config, show_progress_bar=False)
    compute = time.perf_counter() - ready - data.seconds
    steps = len(forwards) - 1  # the first one only finds equal inputs, and its minibatch comes again
    with TemporaryDirectory() as folder:
        writing = time.perf_counter()
        save_file({name: rows.contiguous() for name, rows in found.items()}, f"{folder}/eva.safetensors")
        write = time.perf_counter() - writing
    seconds = {
        "load": loaded - started,
        "forward": spent["forward"] - spent["partial_fit"],  # its hooks run inside the forward
        "svd": spent["partial_fit"],
        "decision": compute - spent["forward"],
        "write": write,
    }
    tokens = sum(data.tokens[step] for step in range(steps))
    tensors = {name: rows.detach().float().cpu() for name, rows in found.items()}
    return Contender("PEFT", compute, seconds, steps, tokens, tensors, {"peak_bytes": _peak_bytes()})


def ours(run: Prepared, threads: int, dtype: Dtype) -> Contender:
    """One worker's session and, step by step in between, the floor: bare forwards of the same tokens."""
    run = in_dtype(run, dtype)
    started = time.perf_counter()
    worker = session(run, threads)
    loaded = time.perf_counter()
    plan = begin(worker, run)
    begin_seconds = time.perf_counter() - loaded
    floor = Floor(worker)
    paused = 0.0

    def step(decision: StepDecision) -> list[StepReport]:
        nonlocal paused
        reports = [worker.step(decision)]
        pausing = time.perf_counter()
        floor.step(decision)
        paused += time.perf_counter() - pausing
        return reports

    begun = time.perf_counter()
    eva = run.config.eva
    result = run_to_end(worker, plan, eva.tau, eva.max_steps, step)
    tensors = state_dict(layer_facts(result), run.config.eva.whiten)
    pass_seconds = time.perf_counter() - begun - paused
    peak = _peak_bytes()
    worker.leave()
    writing = time.perf_counter()
    with TemporaryDirectory() as folder:
        build_artifact(Path(folder), result, run.config.eva, provenance(run))
    write = time.perf_counter() - writing
    extra = {
        "floor_seconds": floor.seconds,
        "pass_seconds": pass_seconds,
        "probe_seconds": begin_seconds,
        "layers_converged": result.state.layers_converged,
        "layers_total": len(plan.layers),
        "peak_bytes": peak,
    }
    seconds = {"load": loaded - started, "probe": begin_seconds, **result.state.seconds, "write": write}
    compute, state = begin_seconds + pass_seconds, result.state
    return Contender(f"eva_dist {dtype.value}", compute, seconds, state.steps, state.tokens, tensors, extra)


def truth(
    run: Prepared, threads: int, steps: int, found: Mapping[str, dict[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """Hold state dicts against the exact leading components of all tokens of `steps` steps (float64).

    Returns:
        By contender: median and worst overlap (mean squared cosine of the principal angles, over the
        components that every contender gives the layer) and the median captured-variance deficit.
    """
    worker = session(in_dtype(run, Dtype.float32), threads)
    plan = begin(worker, run)
    tracker, states = CovarianceTracker(1), dict[int, Any]()

    def take(group: int, x_TD: Tensor) -> None:
        states[group] = tracker.update(states.get(group), x_TD)

    for step in range(steps):
        worker.context.feed.rows(step, [group.index for group in plan.groups], take)
    worker.leave()
    overlaps, deficits = ({name: list[float]() for name in found} for _ in range(2))
    for group in plan.groups:
        eigenvalues_D, vectors_DD = torch.linalg.eigh(states[group.index].scatter_DD)
        for layer in group.members:
            common = min(len(rows[layer]) for rows in found.values())
            if common == 0:
                continue
            exact_RD = vectors_DD.flip(1)[:, :common].mT
            best = eigenvalues_D.flip(0)[:common].sum()
            for name, rows in found.items():
                v_RD = normalize(rows[layer][:common].double())  # whitened rows are longer
                overlaps[name].append(float((v_RD @ exact_RD.mT).square().sum() / common))
                captured = ((v_RD @ states[group.index].scatter_DD) * v_RD).sum()
                deficits[name].append(float(1 - captured / best))
    return {
        name: {
            "overlap_median": median(overlaps[name]),
            "overlap_mean": sum(overlaps[name]) / len(overlaps[name]),
            "overlap_worst": min(overlaps[name]),
            "stop_deficit_median": median(deficits[name]),
        }
        for name in found
    }


def in_dtype(run: Prepared, dtype: Dtype) -> Prepared:
    """Return the run with the model in another number format."""
    return replace(run, config=replace(run.config, model=replace(run.config.model, dtype=dtype)))


def session(run: Prepared, threads: int) -> Worker:
    """Return a loaded session of one worker."""
    torch.set_num_threads(threads)
    worker = Worker(assignment(run), 0, 1, _first_device())
    worker.load()
    return worker


def begin(worker: Worker, run: Prepared) -> Plan:
    """Let a loaded session find its input groups and start a pass."""
    probe, layout = worker.probe()
    plan = assignment(run).plan(probe.groups, world_size=1)
    worker.begin(plan, probe, layout)
    return plan.points[0]


def run_to_end(
    worker: Worker, plan: Plan, tau: float, max_steps: int, step: Callable[[StepDecision], Sequence[StepReport]]
) -> PointResult:
    """Run the pass that was begun, whatever has converged by its end; at tau = 1 no layer ever does."""
    state = run_pass(one_point(first_state(plan, Eva(tau), max_steps, accept=True)), step).only()
    return finish(state, worker.components())


def all_active(plan: Plan, step: int) -> StepDecision:
    """Return the decision that has every input group updated at a step, by one worker."""
    groups = tuple(group.index for group in plan.groups)
    return StepDecision(step, groups, dict.fromkeys(groups, 0))


class _PaddedSteps(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The samples of each step as one minibatch, padded to the full length; tells how many tokens of each count."""

    def __init__(self, run: Prepared) -> None:
        data, eva = run.config.data, run.config.eva
        self._stream = TokenStream(open_rows(data), load_tokenizer(run.config.model), data, eva.label_mask_value)
        self._padding = {"labels": eva.label_mask_value}
        self._masks = eva.use_label_mask
        self._max_length = data.max_length
        self.tokens: dict[int, int] = {}
        self.seconds = 0.0

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        started = time.perf_counter()
        (minibatch,) = self._stream.window(step, Batching(steps=1, tokens=10**9)).minibatches
        short = self._max_length - minibatch["input_ids"].shape[1]
        padded = {key: pad(value, (0, short), value=self._padding.get(key, 0)) for key, value in minibatch.items()}
        counting = padded["attention_mask"].bool()
        if self._masks and "labels" in padded:
            counting &= padded["labels"] != self._padding["labels"]
        self.tokens[step] = int(counting.sum())
        self.seconds += time.perf_counter() - started
        return padded

    def place(self, minibatch: Any) -> dict[str, Tensor]:
        """Move a minibatch to the device."""
        return {key: value.to(_first_device()) for key, value in minibatch.items()}


class Floor:
    """Forwards the tokens of steps up to the last active tap, laid out as the worker does it, and nothing else.

    As the worker, it forwards a window once, when its first step comes.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._steps = range(0)
        self.seconds = 0.0

    def step(self, decision: StepDecision) -> None:
        """Forward one step; only the forwards are timed."""
        if decision.step in self._steps:
            return
        feed = self._worker.context.feed
        window = self._worker.source.window(decision.step)
        self._steps = window.steps
        prepared = [feed.forward.prepare(m) for m in window.minibatches]
        names = [feed.taps[group].name for group in decision.active]
        _wait_for_device()
        started = time.perf_counter()
        for minibatch in prepared:
            missing = set(names)

            def reached(name: str, _: Any, missing: set[str] = missing) -> None:
                missing.discard(name)
                if not missing:
                    raise ForwardCut

            with torch.no_grad(), tap_inputs(feed.model, names, reached), suppress(ForwardCut):
                feed.forward.run(minibatch)
        _wait_for_device()
        self.seconds += time.perf_counter() - started


def _first_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _wait_for_device() -> None:
    """Wait for an accelerator, so that its work is timed and not its launches."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_bytes() -> int:
    """Return this process's peak of memory: of the accelerator, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _timed_calls(owner: Any, method: str, spent: dict[str, float]) -> Iterator[list[float]]:
    """While open, add the wall-clock seconds of every call of a method to `spent[method]`; yield when each began."""
    calls: list[float] = []
    plain, was_own = getattr(owner, method), method in vars(owner)

    @functools.wraps(plain)
    def timed(*args: Any, **options: Any) -> Any:
        calls.append(started := time.perf_counter())
        try:
            return plain(*args, **options)
        finally:
            _wait_for_device()
            spent[method] += time.perf_counter() - started

    setattr(owner, method, timed)
    try:
        yield calls
    finally:
        if was_own:
            setattr(owner, method, plain)
        else:
            delattr(owner, method)


def median(values: Sequence[float]) -> float:
    """Return the median; NaN of nothing."""
    return statistics.median(values) if values else math.nan
