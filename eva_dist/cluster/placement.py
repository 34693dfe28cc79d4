"""How many workers fit a cluster, from what its nodes have: pure, no ray.

A shard group lies inside one node: its workers exchange the weights of every layer, which
nothing between nodes is fast enough for. Replicas go wherever there is room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eva_dist.errors import PlacementError

Resources = Mapping[str, float]
"""Amounts by Ray's names: CPU, GPU, or a custom accelerator."""


@dataclass(frozen=True)
class Request:
    """What a gang asks for: `num_workers` times `worker`, in groups of `shard_size` inside a node."""

    num_workers: int
    shard_size: int
    worker: Resources

    @property
    def shard_group(self) -> dict[str, float]:
        """What the workers of one shard group ask of their node."""
        return {key: amount * self.shard_size for key, amount in self.worker.items() if amount > 0}


def workers_that_fit(request: Request, nodes: Sequence[Resources]) -> int:
    """Return how many workers these nodes hold, in whole shard groups, at most as many as asked for."""
    groups = sum(_groups_on(node, request) for node in nodes)
    return min(request.num_workers, groups * request.shard_size)


def check_fits(request: Request, nodes: Sequence[Resources]) -> None:
    """Raise `PlacementError` if these nodes can never hold the gang, whoever uses them now."""
    room = workers_that_fit(request, nodes)
    if room == request.num_workers:
        return
    has = "; ".join(_describe_request(node) for node in nodes) or "no node"
    together = f" (cluster.shard_size={request.shard_size} of them on one node)" if request.shard_size > 1 else ""
    each = _describe_request(request.worker)
    raise PlacementError(
        f"cluster.num_workers={request.num_workers} workers{together} of {each} each do not fit: the cluster has room "
        f"for {room}. Its nodes have: {has}; lower cluster.num_workers, cluster.shard_size or cluster.resources, or "
        "add nodes"
    )


def worker_resources(wanted: Resources, num_workers: int, nodes: Sequence[Resources]) -> dict[str, float]:
    """Return what one worker asks for: as configured, else a GPU where there are any, else a CPU.

    Raises:
        PlacementError: there are GPUs, but fewer than workers, and nothing says what to do about that.
    """
    if wanted:
        return dict(wanted)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if 0 < gpus < num_workers:
        raise PlacementError(
            f"cluster.num_workers={num_workers} is more than the {gpus:g} GPUs of the cluster; "
            "lower it, or run on CPUs with '+cluster.resources.CPU=1'"
        )
    return {"CPU": 1.0, "GPU": 1.0} if gpus else {"CPU": 1.0}


def _groups_on(node: Resources, request: Request) -> int:
    asked = request.shard_group
    if not asked:
        return request.num_workers
    return min(int(node.get(key, 0.0) / amount + 1e-9) for key, amount in asked.items())


def _describe_request(resources: Resources) -> str:
    return " ".join(f"{key}={amount:g}" for key, amount in sorted(resources.items())) or "nothing"
