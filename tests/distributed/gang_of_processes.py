"""Drive one function through several processes that share a gloo process group."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from eva_dist.distributed.process_group import free_address, process_group

DEADLINE_S = 60.0
PRELOAD = ["eva_dist.calibration.worker", "transformers.models.llama.modeling_llama"]
"""What members need and takes seconds to import: once in the process that all are forked from."""


def run(world_size: int, work: Callable[[int, int], Any], folder: Path, timeout_s: float = 20.0) -> list[Any]:
    """Return what `work(global_rank, world_size)` returned in each process, by `global_rank`.

    Raises:
        ProcessRaisedException: with the traceback of the first process that failed.
    """
    arguments = (world_size, free_address("127.0.0.1"), work, str(folder), timeout_s)
    mp.set_forkserver_preload(PRELOAD)
    context = mp.start_processes(_member, arguments, nprocs=world_size, join=False, start_method="forkserver")
    deadline = time.monotonic() + DEADLINE_S
    try:
        while not context.join(max(0.0, deadline - time.monotonic())):  # true when the last one has ended
            assert time.monotonic() < deadline, f"no answer in {DEADLINE_S} s"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _member(global_rank: int, world_size: int, address: str, work: Any, folder: str, timeout_s: float) -> None:
    torch.set_num_threads(1)
    with process_group(address, global_rank, world_size, torch.device("cpu"), timeout_s):
        answer = work(global_rank, world_size)
    torch.save(answer, Path(folder) / f"{global_rank}.pt")
