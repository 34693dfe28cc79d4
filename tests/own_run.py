"""A whole run in this process: what `precompute` does, without a gang."""

from eva_dist.artifact.build import build_artifact
from eva_dist.config import Config
from eva_dist.controller import first_state
from eva_dist.engine import finish, run_pass
from eva_dist.prepare import prepare, provenance
from eva_dist.store.local import Published
from jobs.contenders import begin, session


def own_run(config: Config) -> Published:
    """Run a pass and publish it."""
    run = prepare(config)
    worker = session(run, 1)
    plan = begin(worker, run)
    eva = config.eva
    state = run_pass(first_state(plan, eva.tau, eva.max_steps, run.accepts), lambda d: [worker.step(d)])
    worker.leave()
    result = finish(state, worker.components())
    return run.store.publish(
        run.fingerprint, run.repo_id, run.revision, lambda folder: build_artifact(folder, result, eva, provenance(run))
    )
