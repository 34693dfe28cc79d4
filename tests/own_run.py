"""A whole run in this process: what `precompute` does, without a gang."""

from eva_dist.config import Config
from eva_dist.controller import first_state
from eva_dist.engine import finish, run_pass
from eva_dist.points import one_point
from eva_dist.prepare import prepare
from eva_dist.publishing import publish
from eva_dist.store.store import Published
from jobs.contenders import begin, session


def own_run(config: Config) -> Published:
    """Run a pass and publish it."""
    run = prepare(config)
    worker = session(run, 1)
    plan = begin(worker, run)
    eva = config.eva
    first = one_point(first_state(plan, eva.tau, eva.max_steps, run.accepts))
    state = run_pass(first, lambda decision: [worker.step(decision)]).only()
    worker.leave()
    return publish(run, finish(state, worker.components()))
