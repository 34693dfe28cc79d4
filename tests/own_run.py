"""A whole run in this process: what `precompute` does, without a gang."""

import tempfile
from pathlib import Path

from eva_dist.artifact.covariance import write_covariance
from eva_dist.calibration.controller import first_state
from eva_dist.calibration.engine import finish, run_pass
from eva_dist.calibration.pass_state import one_point
from eva_dist.config import Config
from eva_dist.methods.eva import Eva
from eva_dist.run.prepare import prepare
from eva_dist.run.publish import publish
from eva_dist.store.store import Published
from jobs.contenders import begin, session


def own_run(config: Config) -> Published:
    """Run a pass and publish it."""
    run = prepare(config)
    worker = session(run, 1)
    plan = begin(worker, run)
    eva = config.eva
    first = one_point(first_state(plan, Eva(eva.tau), eva.max_steps, run.accepts))
    state = run_pass(first, lambda decision: [worker.step(decision)]).only()
    worker.leave()
    components = worker.components()
    if not config.solver.keep_covariance:
        return publish(run, finish(state, components))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "covariance"
        updated = [group for group in plan.groups if group.index in components]
        write_covariance(path, updated, lambda group: worker.covariance(0, group.index))
        return publish(run, finish(state, components, covariance=path))
