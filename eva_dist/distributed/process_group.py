"""Open and close the process group of a gang and the groups inside it, always with a timeout."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from eva_dist.errors import ConfigError


def free_address(host: str) -> str:
    """Return `tcp://<host>:<free port>` for a rendezvous; call it on `host`, where `global_rank` 0 runs."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return f"tcp://{host}:{port}"


def interface_address(name: str) -> str:
    """Return the IPv4 address of a network interface of this machine.

    Raises:
        ConfigError: there is none of that name, or it has no such address.
    """
    known = psutil.net_if_addrs()
    found = [entry.address for entry in known.get(name, []) if entry.family is socket.AF_INET]
    if not found:
        raise ConfigError(
            f"cluster.network_interface={name} must be an interface with an IPv4 address on every node; "
            f"this one has {', '.join(sorted(known))}"
        )
    return found[0]


def backend_for(device: torch.device) -> str:
    """Return the backend that moves tensors of this device: nccl for CUDA, else gloo."""
    return "nccl" if device.type == "cuda" else "gloo"


@contextmanager
def process_group(
    address: str, global_rank: int, world_size: int, device: torch.device, timeout_s: float
) -> Iterator[None]:
    """Join the gang's process group; leave it when the context closes.

    Raises:
        RuntimeError: some member did not arrive within `timeout_s` (torch's `DistStoreError`).
    """
    dist.init_process_group(
        backend_for(device),
        init_method=address,
        rank=global_rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard_mesh(shard_size: int, device: torch.device, timeout_s: float) -> DeviceMesh:
    """Return the gang as `[replicas, shard_size]`, axes `replicate` and `shard`; all members call this together.

    Worker `global_rank` is member `global_rank % shard_size` of shard group `global_rank // shard_size`, so
    a shard group is made of neighbours. Their collectives have the timeout of the gang's.
    """
    ranks_RS = torch.arange(dist.get_world_size()).view(-1, shard_size)
    groups = [
        dist.new_subgroups_by_enumeration(lines.tolist(), timedelta(seconds=timeout_s))[0]
        for lines in (ranks_RS.T, ranks_RS)
    ]
    return DeviceMesh.from_group(groups, device.type, ranks_RS, mesh_dim_names=("replicate", "shard"))


def largest(value: int, mesh: DeviceMesh, device: torch.device) -> int:
    """Return the largest `value` of a shard group; all its members call this together."""
    found = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=mesh.get_group("shard"))
    return int(found)
