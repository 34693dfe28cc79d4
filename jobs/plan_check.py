"""Hold an estimate against what is measured: the configured model, some steps on this machine, all groups active."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from torch.utils.flop_counter import FlopCounterMode

from eva_dist.artifact.file_names import ADAPTER_FILE, STATE_DICT_FILE
from eva_dist.artifact.write import build_artifact
from eva_dist.calibration.controller import StepDecision, StepReport, first_state
from eva_dist.calibration.engine import finish, run_pass
from eva_dist.calibration.pass_state import one_point
from eva_dist.config import Config, Exchange, StoreConfig
from eva_dist.methods.eva import Eva
from eva_dist.modeling.load import Architecture
from eva_dist.preflight.accelerator import Accelerator
from eva_dist.preflight.estimate import Preflight, estimate
from eva_dist.preflight.report import Check
from eva_dist.preflight.workload import tensor_bytes
from eva_dist.run.prepare import Prepared, prepare, provenance
from jobs import measures
from jobs.contenders import Floor, begin, session

_UNTIMED = 2
"""Steps: the first update of a group is another one, and the second finds caches cold."""


class Wanted(Protocol):
    """What of the settings matters here."""

    steps: int
    workers: int
    threads: int | None


@dataclass(frozen=True)
class Measured:
    """One worker's steps, all groups active: tokens by step, files of the artifact in bytes.

    `forward` and `svd` are tokens and seconds of the step that was fastest by token: the machine may
    have other work, and `calibrate` takes its fastest moment too.
    """

    tokens: list[int]
    parameters: int
    weight_bytes: int
    groups: int
    counted_step: int
    counted_operations: int
    forward: tuple[int, float]
    svd: tuple[int, float]
    files: dict[str, int]

    @property
    def timed(self) -> list[int]:
        """Tokens of the steps that were timed."""
        return self.tokens[_UNTIMED:]


def this_device() -> str:
    """Return the type of device that measurements run on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check(config: Config, architecture: Architecture, here: Accelerator, wanted: Wanted) -> tuple[Check, ...]:
    """Measure one worker, then a gang's traffic, and return every figure beside its prediction."""
    with TemporaryDirectory() as folder:  # a run must have a store, though nothing is published
        return _check(replace(config, store=StoreConfig(folder)), architecture, here, wanted)


def _check(config: Config, architecture: Architecture, here: Accelerator, wanted: Wanted) -> tuple[Check, ...]:
    threads = wanted.threads or os.cpu_count() or 1
    alone = replace(config, cluster=replace(config.cluster, num_workers=1, shard_size=1, offload=False))
    run = prepare(alone)
    measured = one_worker(run, threads, wanted.steps)
    memory = measures.memory(run, threads, wanted.steps)

    def predicted(tokens: float) -> Preflight:
        return estimate(alone, architecture, here, tokens)

    mean, largest = predicted(statistics.mean(measured.timed)), predicted(max(measured.timed))
    counted = predicted(measured.tokens[measured.counted_step])
    checks = [
        Check("parameters loaded", mean.model.loaded_parameters, measured.parameters, ""),
        Check("bytes loaded", mean.model.loaded_bytes, measured.weight_bytes, "bytes"),
        Check("input groups", mean.model.input_groups, measured.groups, ""),
        Check("trackers", mean.memory.trackers, memory["tracker_bytes"], "bytes"),
        Check("forward, peak", largest.memory.activations, memory["forward_bytes"], "bytes"),
        Check(
            "worker, peak beyond the model",
            largest.memory.peak - largest.memory.weights - largest.memory.checkpoint,
            memory["forward_bytes"] + memory["above_forward_bytes"],
            "bytes",
        ),
        Check(
            "forward, products less attention",
            (counted.work.forward_operations - counted.work.attention_operations) / 1e9,
            measured.counted_operations / 1e9,
            "GFLOP",
        ),
        Check("forward", 1e3 * predicted(measured.forward[0]).seconds.forward, 1e3 * measured.forward[1], "ms"),
        Check("SVDs", 1e3 * predicted(measured.svd[0]).seconds.svd, 1e3 * measured.svd[1], "ms"),
        Check("EVA state dict", mean.artifact.state_dict, measured.files[STATE_DICT_FILE], "bytes"),
        Check("adapter", mean.artifact.adapter, measured.files[ADAPTER_FILE], "bytes"),
        Check("artifact", mean.artifact.total, sum(measured.files.values()), "bytes"),
    ]
    return (*checks, *_gang(run, architecture, here, wanted, measured.tokens))


def one_worker(run: Prepared, threads: int, steps: int) -> Measured:
    """Run a session of one worker for some steps, and build the artifact of what it found."""
    worker = session(run, threads)
    plan = begin(worker, run)
    reports: list[StepReport] = []

    def step(decision: StepDecision) -> Sequence[StepReport]:
        reports.append(worker.step(decision))
        return reports[-1:]

    state = run_pass(
        one_point(first_state(plan, Eva(1.0), steps, accept=True)), step
    ).only()  # no layer converges at tau = 1
    result = finish(state, worker.components())
    active = tuple(group.index for group in plan.groups)
    floor = Floor(worker)
    with FlopCounterMode(display=False) as counter:
        floor.step(StepDecision(0, active, dict.fromkeys(active, 0)))
    worker.leave()
    with TemporaryDirectory() as folder:
        build_artifact(Path(folder), result, run.config.eva, provenance(run))
        files = {file.name: file.stat().st_size for file in Path(folder).iterdir()}
    timed = reports[_UNTIMED:]
    return Measured(
        tokens=[report.tokens for report in reports],
        parameters=sum(p.numel() for p in worker.model.parameters()),
        weight_bytes=tensor_bytes(worker.model),
        groups=len(plan.groups),
        counted_step=0,
        counted_operations=counter.get_total_flops(),
        forward=_fastest(timed, "forward"),
        svd=_fastest(timed, "svd"),
        files=files,
    )


def _fastest(reports: Sequence[StepReport], phase: str) -> tuple[int, float]:
    best = min(reports, key=lambda report: report.seconds[phase] / report.tokens)
    return best.tokens, best.seconds[phase]


def _gang(
    run: Prepared, architecture: Architecture, here: Accelerator, wanted: Wanted, tokens: Sequence[int]
) -> list[Check]:
    """Return traffic of a gang, by exchange: bytes of a step, all workers."""
    if wanted.workers == 1:
        return []
    checks = []
    mean = statistics.mean(tokens)
    for exchange in Exchange:
        row = measures.scaling(run, wanted.workers, exchange, wanted.steps)
        cluster = replace(run.config.cluster, num_workers=wanted.workers, exchange=exchange)
        found = estimate(replace(run.config, cluster=cluster), architecture, here, mean)
        each_token = found.work.exchanged_bytes / found.step.tokens
        name = f"{exchange.value}, {wanted.workers} workers, sent"
        checks.append(Check(name, each_token * mean, row.sent_bytes_per_token * mean, "bytes"))
    return checks
