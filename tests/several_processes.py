"""Gangs of any number without Ray: what `OneProcess` does, for tests of all that is not Ray's."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from eva_dist.calibration.worker import Assignment
from eva_dist.cluster.environment import worker_environment
from eva_dist.cluster.gang_worker import GangWorker
from eva_dist.cluster.one_process import OneProcess, WorkerProcess
from eva_dist.cluster.placement import Request
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.cluster.workers import BEGIN


def make_worker(assignment: Assignment, global_rank: int, world_size: int) -> GangWorker:
    return GangWorker(assignment, global_rank, world_size, torch.device("cpu"), "127.0.0.1")


class SeveralProcesses(OneProcess):
    """A machine of four cores, whatever this one has."""

    def nodes(self):
        return [{"CPU": 4.0}]

    @contextmanager
    def start(self, assignment: Assignment, request: Request, stop: StopRequest) -> Iterator[Any]:
        environment = worker_environment(assignment.config.cluster, request)
        with ExitStack() as stack:
            processes = []
            for global_rank in range(request.num_workers):
                processes.append(WorkerProcess(environment))
                stack.callback(processes[-1].end)
                processes[-1].ask(0, BEGIN, make_worker, assignment, global_rank, request.num_workers)
            yield _Workers(processes)


class _Workers:
    def __init__(self, processes: Sequence[WorkerProcess]) -> None:
        self._processes = processes
        self.wait, self.answer = processes[0].wait, processes[0].answer

    def __len__(self) -> int:
        return len(self._processes)

    def ask(self, global_rank: int, method: str, *arguments: Any) -> Any:
        return self._processes[global_rank].ask(0, method, *arguments)
