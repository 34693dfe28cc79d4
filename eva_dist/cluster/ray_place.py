"""A gang as actors of the Ray cluster that this process is connected to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from eva_dist.calibration.worker import Assignment
from eva_dist.cluster import connect
from eva_dist.cluster.environment import is_own_ray, worker_environment
from eva_dist.cluster.gang_worker import GangWorker
from eva_dist.cluster.lock import exclusive_run
from eva_dist.cluster.metrics import PassMetrics
from eva_dist.cluster.placement import Request, Resources
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.cluster.workers import THREADS, CallError
from eva_dist.config import ClusterConfig

_NODES_JOIN_S = 5.0


class RayWorker(GangWorker):
    """A worker that finds its device and its address by Ray."""

    def __init__(self, assignment: Assignment, global_rank: int, world_size: int) -> None:
        device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
        super().__init__(assignment, global_rank, world_size, device, ray.util.get_node_ip_address())


for _method, _thread in THREADS.items():
    setattr(RayWorker, _method, ray.method(concurrency_group=_thread)(getattr(GangWorker, _method)))


def as_actor() -> Any:
    """Return the actor class, with its threads."""
    return ray.remote(concurrency_groups=dict.fromkeys(THREADS.values(), 1))(RayWorker)  # type: ignore[call-overload]


class RayPlace:
    """The cluster that this process is connected to, as `cluster` asks for it."""

    exclusive_run = staticmethod(exclusive_run)
    metrics = staticmethod(PassMetrics)

    def __init__(self, cluster: ClusterConfig) -> None:
        self.settles_s = 0.0 if is_own_ray(cluster) else _NODES_JOIN_S

    def nodes(self) -> list[Resources]:
        """Return what each node that is alive has in all."""
        return connect.nodes()

    @contextmanager
    def start(self, assignment: Assignment, request: Request, stop: StopRequest) -> Iterator["_Actors"]:
        """Start one actor a worker; kill them all when the context closes, however it closes."""
        cluster = assignment.config.cluster
        environment = worker_environment(cluster, request)
        actors: list[Any] = []
        # all or nothing: a gang that has some of its workers would hold them and wait for the others for ever
        with connect.reserved(request, cluster.timeout_s, stop) as group:
            try:
                for global_rank in range(request.num_workers):
                    actor = as_actor().options(**_actor_options(group, request, global_rank, environment))
                    actors.append(actor.remote(assignment, global_rank, request.num_workers))
                yield _Actors(actors)
            finally:
                for actor in actors:
                    with suppress(RayError):  # the cluster itself is gone
                        ray.kill(actor, no_restart=True)


class _Actors:
    """Actors as `Workers`; what stands for an answer is Ray's reference."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def __len__(self) -> int:
        return len(self._actors)

    def ask(self, global_rank: int, method: str, *arguments: Any) -> Any:
        return getattr(self._actors[global_rank], method).remote(*arguments)

    def wait(self, asked: Sequence[Any], timeout_s: float) -> list[Any]:
        done: list[Any] = ray.wait(list(asked), num_returns=1, timeout=timeout_s)[0]
        return done

    def answer(self, asked: Any) -> Any:
        try:
            return ray.get(asked)
        except RayError as error:
            raise CallError(str(error), getattr(error, "cause", None), isinstance(error, RayActorError)) from error


def _actor_options(
    group: PlacementGroup, request: Request, global_rank: int, environment: dict[str, str]
) -> dict[str, Any]:
    asked = dict(request.worker)
    return {
        "max_restarts": 0,
        "num_cpus": asked.pop("CPU", 0),
        "num_gpus": asked.pop("GPU", 0),
        "resources": asked,
        "runtime_env": {"env_vars": environment},
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, global_rank // request.shard_size),
    }
