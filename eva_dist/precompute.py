"""One run, from what `prepare` found to a published artifact: answer from the store or compute, publish."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from eva_dist.artifact.build import build_artifact
from eva_dist.checkpoint import CheckpointFolder
from eva_dist.config import Resume
from eva_dist.controller import PointState, refuse_unconverged
from eva_dist.prepare import Prepared, assignment, provenance
from eva_dist.progress import each
from eva_dist.stopping import StopRequest
from eva_dist.store.files import remove_older
from eva_dist.store.local import Published

_FORGOTTEN_S = 30 * 24 * 3600
"""Checkpoints that have lain so long are of runs that nobody goes on with."""


@dataclass(frozen=True)
class Outcome:
    """What a run prints as its last line on standard output (design: command contract)."""

    url: str
    repo_id: str
    revision: str
    fingerprint: str
    status: str
    steps: int
    tokens: int
    seconds: float
    pass_seconds: float
    layers_converged: int
    layers_total: int


def precompute(
    run: Prepared, on_step: Callable[[PointState], None], started: float, stop: StopRequest | None = None
) -> Outcome:
    """Answer from the store, or compute on a gang and publish.

    Of several drivers in one cluster that ask for the same fingerprint, one computes and the
    others wait for what it publishes.

    Args:
        run: from `prepare`.
        on_step: told the state after each step (progress).
        started: `time.perf_counter()` when the whole run began.
        stop: when made, the run keeps a checkpoint and ends.

    Raises:
        NotConvergedError: `eva.max_steps` reached, and `eva.on_max_steps=error`.
        PreemptedError: `stop` was made.
        GangError, StoreError and what the pass refuses; nothing half-done is left.
    """
    stop = stop or StopRequest()
    if (found := None if run.config.artifact.overwrite else _answer(run)) is not None:
        return _outcome(run, found, "cached", time.perf_counter() - started)
    # ray is imported when a gang is really wanted
    from eva_dist.actors.cluster import connected
    from eva_dist.actors.lock import alone

    with connected(run.config.cluster), alone(run.fingerprint, stop) as waited:
        if waited and (found := _answer(run)) is not None:
            return _outcome(run, found, "cached", time.perf_counter() - started)
        published = _compute(run, on_step, stop)
    return _outcome(run, published, published.manifest["status"], time.perf_counter() - started)


def _answer(run: Prepared) -> Published | None:
    """Return what the store has for this run, under the name that it asks for."""
    found = run.store.find(run.fingerprint)
    if found is None or not (run.accepts or found.manifest["status"] == "done"):
        return None
    _checkpoints(run).clear()  # of a driver that died between publishing and clearing
    return run.store.point(run.fingerprint, run.repo_id, run.revision)


def _compute(run: Prepared, on_step: Callable[[PointState], None], stop: StopRequest) -> Published:
    from eva_dist.actors.metrics import PassMetrics
    from eva_dist.actors.run import run_on_gang

    remove_older(run.store.checkpoints, _FORGOTTEN_S)
    checkpoints = _checkpoints(run)
    if run.config.resume is Resume.never:
        checkpoints.clear()
    told = each(PassMetrics(run.fingerprint, run.repo_id), on_step)
    result = run_on_gang(assignment(run), told, checkpoints, stop)
    if not run.accepts:
        refuse_unconverged(result.state)  # its checkpoints stay: on_max_steps=accept goes on from them
    published = run.store.publish(
        run.fingerprint,
        run.repo_id,
        run.revision,
        lambda folder: build_artifact(folder, result, run.config.eva, provenance(run, result.world_size)),
        overwrite=run.config.artifact.overwrite or run.store.find(run.fingerprint) is not None,
    )
    checkpoints.clear()
    return published


def _checkpoints(run: Prepared) -> CheckpointFolder:
    return CheckpointFolder(run.store.checkpoints, run.fingerprint, run.config.cluster.keep_checkpoints)


def _outcome(run: Prepared, published: Published, status: str, seconds: float) -> Outcome:
    return outcome(published, run.repo_id, run.revision, status, seconds)


def outcome(published: Published, repo_id: str, revision: str, status: str, seconds: float) -> Outcome:
    """Return the outcome of publishing, or finding, an artifact under this name, in so many seconds."""
    manifest = published.manifest
    return Outcome(
        url=published.url,
        repo_id=repo_id,
        revision=revision,
        fingerprint=published.fingerprint,
        status=status,
        steps=manifest["steps"],
        tokens=manifest["tokens"],
        seconds=round(seconds, 3),
        pass_seconds=round(manifest["seconds"], 3),
        layers_converged=manifest["layers_converged"],
        layers_total=manifest["layers_total"],
    )
