"""From a point's result to a published artifact, and from the store to an answer."""

import logging

from eva_dist.artifact.write import build_artifact
from eva_dist.calibration.controller import PointResult, refuse_unconverged
from eva_dist.numerics.data_rank import beyond_data
from eva_dist.run.outcome import Outcome
from eva_dist.run.prepare import Prepared, provenance
from eva_dist.store.store import Published

_log = logging.getLogger(__name__)


def is_stored(run: Prepared) -> bool:
    """Tell whether the store has what this run asks for, and the run may be answered with it."""
    found = None if run.config.artifact.overwrite else run.store.find(run.fingerprint)
    if found is None or not run.is_answered_by(found.manifest):
        return False
    return run.accepts or found.manifest["status"] == "done"


def answer(run: Prepared) -> Published | None:
    """Return what the store has for this run, under the name that it asks for."""
    return run.store.point(run.fingerprint, run.repo_id, run.revision) if is_stored(run) else None


def publish(run: Prepared, result: PointResult) -> Published:
    """Build the artifact and publish it; one that others have published meanwhile is used as it is.

    Raises:
        NotConvergedError: layers have not converged, and `eva.on_max_steps=error`.
        StoreError: the store cannot take it; nothing half-done is left.
    """
    _warn_of_lost_samples(run, result)
    _warn_beyond_data(result)  # before it is refused for what can never converge
    if not run.accepts:
        refuse_unconverged(result.state)
    if (found := answer(run)) is not None:
        return found
    return run.store.publish(
        run.fingerprint,
        run.repo_id,
        run.revision,
        lambda folder: build_artifact(folder, result, run.config.eva, provenance(run, result.world_size)),
        overwrite=run.config.artifact.overwrite or run.store.find(run.fingerprint) is not None,
    )


def _warn_of_lost_samples(run: Prepared, result: PointResult) -> None:
    """Say how many samples of the pass added nothing: what was looked at before it is only some of the rows."""
    if lost := result.state.unlabelled:
        _log.warning(
            "%d of %d samples of the pass had no token that counts: all are masked, or lie behind data.max_length=%d",
            lost,
            result.state.steps * run.config.data.step_size,
            run.config.data.max_length,
        )


def _warn_beyond_data(result: PointResult) -> None:
    state, components = result.state, result.components
    group_of = {name: group.index for group in state.plan.groups for name in group.members}
    found = [(name, rank, components[group_of[name]]) for name, rank in state.ranks.items() if rank]
    if hint := beyond_data(found):
        _log.warning("%s", hint)


def outcome(published: Published, repo_id: str, revision: str, status: str, seconds: float) -> Outcome:
    """Return what is printed of an artifact that was published, or found, under this name in so many seconds."""
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
