"""A worker that can be made to raise: what a bug, or memory that runs out, looks like to the gang."""

from pathlib import Path

import ray

from eva_dist.cluster.ray_worker import GROUPS, RayWorker


class TrapWorker(RayWorker):
    """Raises in `step` when there is a file `trap` beside the store: once for `once`, else for ever."""

    def step(self, decision):
        trap = Path(self._assignment.config.store.url).parent / "trap"
        if self._global_rank == 0 and trap.exists() and decision.step >= int(trap.read_text().split()[1]):
            if trap.read_text().startswith("once"):
                trap.unlink()
            raise RuntimeError("it snapped")
        return super().step(decision)


def as_actor():
    return ray.remote(concurrency_groups=GROUPS)(TrapWorker)
