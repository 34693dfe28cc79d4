"""One Ray actor: a session that finds its device and its address by Ray, and can be asked how it is."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from eva_dist.calibration.group_svds import Svds, to_checkpoint
from eva_dist.calibration.worker import Assignment, Worker
from eva_dist.distributed.process_group import free_address, interface_address
from eva_dist.logs import log_to_stderr

GROUPS = {"status": 1, "io": 1}
"""Ray's concurrency groups: threads of their own, beside the one in which the session runs."""


@dataclass(frozen=True)
class Status:
    """What a worker is doing, and since how many seconds."""

    global_rank: int
    node: str
    pid: int
    doing: str
    for_s: float

    def __str__(self) -> str:
        """Return it for a message."""
        return f"global_rank {self.global_rank} ({self.node}, pid {self.pid}) is in {self.doing} for {self.for_s:.0f} s"


class RayWorker(Worker):
    """Methods are called by the driver, one at a time, on all workers alike; see `Gang` for the order.

    `status` and `fetch` run beside them: the one answers while a worker hangs, the other hands
    out what `mark` set aside while the next steps run.
    """

    def __init__(self, assignment: Assignment, global_rank: int, world_size: int) -> None:
        self._node = ray.util.get_node_ip_address()
        self._doing, self._since = "start", time.monotonic()
        self._marked: tuple[int, Svds] = (-1, {})
        log_to_stderr(global_rank=global_rank, node=self._node)
        device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
        super().__init__(assignment, global_rank, world_size, device)

    def address(self) -> str:
        """Return where the gang meets; asked of `global_rank` 0."""
        interface = self._assignment.config.cluster.network_interface
        return free_address(interface_address(interface) if interface else self._node)

    def mark(self, step: int) -> tuple[int, ...]:
        """Set aside the SVDs as they are after `step` steps, for `fetch`, and return whose they are.

        States are replaced, never changed: this copies nothing, and holds one older generation of
        what is updated meanwhile.
        """
        self._marked = (step, {group: dict(by_point) for group, by_point in self.svds.items()})
        return tuple(self.svds)

    @ray.method(concurrency_group="io")
    def fetch(self, step: int, group: int) -> Mapping[str, Tensor]:
        """Return the tracker states of a group that were set aside after `step` steps."""
        marked, svds = self._marked
        assert marked == step, (marked, step)
        return to_checkpoint(svds[group])

    @ray.method(concurrency_group="io")
    def forget(self, step: int) -> None:
        """Let go of what was set aside after `step` steps; what was set aside since then stays."""
        if self._marked[0] == step:
            self._marked = (-1, {})

    @ray.method(concurrency_group="status")
    def status(self) -> Status:
        """Return what this worker is doing; answers while it hangs."""
        return Status(self._global_rank, self._node, os.getpid(), self._doing, time.monotonic() - self._since)

    def on_phase(self, phase: str) -> None:
        """Remember what is being done."""
        self._doing, self._since = phase, time.monotonic()


def as_actor() -> Any:
    """Return the actor class, with its threads."""
    return ray.remote(concurrency_groups=GROUPS)(RayWorker)  # type: ignore[call-overload]
