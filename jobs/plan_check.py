"""Hold an estimate against what is measured: the configured model, some steps on this machine, all groups active."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from eva_dist.artifact.file_names import ADAPTER_FILE, STATE_DICT_FILE
from eva_dist.artifact.write import build_artifact
from eva_dist.calibration.controller import StepDecision, StepReport
from eva_dist.config import Config, Exchange, StoreConfig
from eva_dist.modeling.load import Architecture
from eva_dist.preflight.accelerator import Accelerator
from eva_dist.preflight.estimate import Preflight, estimate
from eva_dist.preflight.report import Check
from eva_dist.preflight.workload import tensor_bytes
from eva_dist.run.prepare import Prepared, prepare, provenance
from jobs import measures
from jobs.contenders import Floor, all_active, begin, run_to_end, session

if TYPE_CHECKING:
    from jobs.plan import PlanSettings

_UNTIMED = 2
"""Steps: the first update of a group is another one, and the second finds caches cold."""


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
    first_step_operations: int
    forward: tuple[int, float]
    svd: tuple[int, float]
    files: dict[str, int]


def this_device() -> str:
    """Return the type of device that measurements run on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check(config: Config, architecture: Architecture, here: Accelerator, wanted: "PlanSettings") -> tuple[Check, ...]:
    """Measure one worker, then a gang's traffic, and return every figure beside its prediction."""
    threads = wanted.threads or os.cpu_count() or 1
    with TemporaryDirectory() as folder:  # a run must have a store, though nothing is published
        cluster = replace(config.cluster, num_workers=1, shard_size=1, offload=False)
        alone = replace(config, store=StoreConfig(folder), cluster=cluster)
        run = prepare(alone)
        measured = one_worker(run, threads, wanted.steps)
        memory = measures.memory(run, threads, wanted.steps)
        traffic = _traffic_checks(run, architecture, here, wanted, statistics.mean(measured.tokens))

    def predicted(tokens: float) -> Preflight:
        return estimate(alone, architecture, here, tokens)

    timed = measured.tokens[_UNTIMED:]
    mean, largest, first = predicted(statistics.mean(timed)), predicted(max(timed)), predicted(measured.tokens[0])
    return (
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
            (first.work.forward_operations - first.work.attention_operations) / 1e9,
            measured.first_step_operations / 1e9,
            "GFLOP",
        ),
        Check("forward", 1e3 * predicted(measured.forward[0]).seconds.forward, 1e3 * measured.forward[1], "ms"),
        Check("SVDs", 1e3 * predicted(measured.svd[0]).seconds.svd, 1e3 * measured.svd[1], "ms"),
        Check("EVA state dict", mean.artifact.state_dict, measured.files[STATE_DICT_FILE], "bytes"),
        Check("adapter", mean.artifact.adapter, measured.files[ADAPTER_FILE], "bytes"),
        Check("artifact", mean.artifact.total, sum(measured.files.values()), "bytes"),
        *traffic,
    )


def one_worker(run: Prepared, threads: int, steps: int) -> Measured:
    """Run a session of one worker for some steps, and build the artifact of what it found."""
    worker = session(run, threads)
    plan = begin(worker, run)
    reports: list[StepReport] = []

    def step(decision: StepDecision) -> Sequence[StepReport]:
        reports.append(worker.step(decision))
        return reports[-1:]

    result = run_to_end(worker, plan, 1.0, steps, step)
    floor = Floor(worker)
    with FlopCounterMode(display=False) as counter:
        floor.step(all_active(plan, 0))
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
        first_step_operations=counter.get_total_flops(),
        forward=_fastest_step(timed, "forward"),
        svd=_fastest_step(timed, "svd"),
        files=files,
    )


def _fastest_step(reports: Sequence[StepReport], phase: str) -> tuple[int, float]:
    best = min(reports, key=lambda report: report.seconds[phase] / report.tokens)
    return best.tokens, best.seconds[phase]


def _traffic_checks(
    run: Prepared, architecture: Architecture, here: Accelerator, wanted: "PlanSettings", tokens: float
) -> list[Check]:
    """Return traffic of a gang, by exchange: bytes of a step of so many tokens, all workers."""
    if wanted.workers == 1:
        return []
    checks = []
    for exchange in Exchange:
        row = measures.scaling(run, wanted.workers, exchange, wanted.steps)
        cluster = replace(run.config.cluster, num_workers=wanted.workers, exchange=exchange)
        found = estimate(replace(run.config, cluster=cluster), architecture, here, tokens)
        each_token = found.work.exchanged_bytes / found.step.tokens
        name = f"{exchange.value}, {wanted.workers} workers, sent"
        checks.append(Check(name, each_token * tokens, row.sent_bytes_per_token * tokens, "bytes"))
    return checks
