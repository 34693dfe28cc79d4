"""Where the workers of a run live, by its settings and this process's environment, and the environment they get."""

import os
import sys

from eva_dist.cluster.placement import Request
from eva_dist.config import ClusterConfig


def is_own_ray(cluster: ClusterConfig) -> bool:
    """Tell whether a run that needs Ray starts it on this machine for itself."""
    return cluster.address == "local" or (not cluster.address and os.environ.get("RAY_ADDRESS") in (None, "", "local"))


def needs_no_ray(cluster: ClusterConfig) -> bool:
    """Tell whether a run has one worker, here, that asks for nothing which only Ray could count.

    A process that is connected to Ray already stays with it.
    """
    ray = sys.modules.get("ray")  # to import it takes a second
    is_connected = ray is not None and ray.is_initialized()
    return (
        cluster.num_workers == 1
        and is_own_ray(cluster)
        and cluster.resources.keys() <= {"CPU", "GPU"}
        and not is_connected
    )


def worker_environment(cluster: ClusterConfig, request: Request) -> dict[str, str]:
    """Return what is added to a worker's environment; threads are counted when its libraries are loaded."""
    fixed = {
        "OMP_NUM_THREADS": str(_threads_per_worker(cluster, request)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if request.shard_size > 1:
        fixed["THP_MEM_ALLOC_ENABLE"] = "1"  # on a CPU, units that are gathered and freed fault in fewer, larger pages
    if cluster.network_interface is not None:
        fixed |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), cluster.network_interface)
    return fixed


def _threads_per_worker(cluster: ClusterConfig, request: Request) -> int:
    if cluster.threads_per_worker is not None:
        return cluster.threads_per_worker
    if is_own_ray(cluster):
        return max(1, (os.cpu_count() or 1) // request.num_workers)
    return max(1, int(request.worker.get("CPU", 1)))
