"""Open the place where the workers of a run will live."""

from collections.abc import Iterator
from contextlib import contextmanager

from eva_dist.cluster.environment import needs_no_ray
from eva_dist.cluster.one_process import OneProcess
from eva_dist.cluster.workers import Place
from eva_dist.config import ClusterConfig


@contextmanager
def open_place(cluster: ClusterConfig) -> Iterator[Place]:
    """Connect to the cluster, start Ray on this machine, or do without it for one worker; leave as found.

    Raises:
        GangError: the cluster cannot be reached.
        PreemptedError: SIGTERM came while Ray was starting.
    """
    if needs_no_ray(cluster):
        yield OneProcess()
        return
    from eva_dist.cluster.connect import connected
    from eva_dist.cluster.ray_place import RayPlace

    with connected(cluster):
        yield RayPlace(cluster)
