"""A worker that can be made to raise: what a bug, or memory that runs out, looks like to the gang."""

from pathlib import Path

import ray
import torch

from eva_dist.cluster.gang_worker import GangWorker
from eva_dist.cluster.ray_place import RayWorker
from eva_dist.cluster.workers import THREADS


class Trap(GangWorker):
    """Raises in `step` when there is a file `trap` beside the store: once for `once`, else for ever."""

    def step(self, decision):
        trap = Path(self._assignment.config.store.url).parent / "trap"
        if self._global_rank == 0 and trap.exists() and decision.step >= int(trap.read_text().split()[1]):
            if trap.read_text().startswith("once"):
                trap.unlink()
            raise RuntimeError("it snapped")
        return super().step(decision)


class TrapWorker(Trap, RayWorker):
    """As an actor."""


def as_actor():
    return ray.remote(concurrency_groups=dict.fromkeys(THREADS.values(), 1))(TrapWorker)


def make_worker(assignment, global_rank, world_size):
    return Trap(assignment, global_rank, world_size, torch.device("cpu"), "127.0.0.1")
