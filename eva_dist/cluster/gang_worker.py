"""A worker of a gang: a session that can be asked how it is, and hands out its state beside the steps."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eva_dist.calibration.group_svds import Svds, to_checkpoint
from eva_dist.calibration.worker import Assignment, Worker
from eva_dist.distributed.process_group import free_address, interface_address
from eva_dist.logs import log_to_stderr


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


class GangWorker(Worker):
    """Methods are called by the driver, one at a time, on all workers alike; see `Gang` for the order.

    `status` and `fetch` run beside them (`workers.THREADS`): the one answers while a worker hangs, the other hands
    out what `mark` set aside while the next steps run.
    """

    def __init__(
        self, assignment: Assignment, global_rank: int, world_size: int, device: torch.device, node: str
    ) -> None:
        self._node = node
        self._doing, self._since = "start", time.monotonic()
        self._marked: tuple[int, Svds] = (-1, {})
        log_to_stderr(global_rank=global_rank, node=node)
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

    def fetch(self, step: int, group: int) -> Mapping[str, Tensor]:
        """Return the tracker states of a group that were set aside after `step` steps."""
        marked, svds = self._marked
        assert marked == step, (marked, step)
        return to_checkpoint(svds[group])

    def forget(self, step: int) -> None:
        """Let go of what was set aside after `step` steps; what was set aside since then stays."""
        if self._marked[0] == step:
            self._marked = (-1, {})

    def status(self) -> Status:
        """Return what this worker is doing; answers while it hangs."""
        return Status(self._global_rank, self._node, os.getpid(), self._doing, time.monotonic() - self._since)

    def on_phase(self, phase: str) -> None:
        """Remember what is being done."""
        self._doing, self._since = phase, time.monotonic()


def make_alone(assignment: Assignment, has_gpu: bool) -> GangWorker:
    """Return the worker of a gang of one, on the machine of its driver."""
    device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
    return GangWorker(assignment, 0, 1, device, "127.0.0.1")
