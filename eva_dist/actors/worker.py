"""One Ray actor: a session that finds its device and its address by Ray."""

import logging
import sys

import ray
import torch

from eva_dist.distributed.process_group import free_address
from eva_dist.session import Assignment, Session


class GangWorker(Session):
    """Methods are called by the driver, one at a time, on all members alike; see `Gang` for the order."""

    def __init__(self, assignment: Assignment, global_rank: int, world_size: int) -> None:
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format=f"[global_rank {global_rank}] %(levelname)s %(message)s"
        )
        torch.set_num_threads(assignment.threads)
        device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
        super().__init__(assignment, global_rank, world_size, device)

    def address(self) -> str:
        """Return where the gang meets; asked of `global_rank` 0."""
        return free_address(ray.util.get_node_ip_address())
