"""Whether a place has room for a gang, asked until it has, or for as long as that is worth waiting for."""

import time

from eva_dist.cluster.placement import Request, check_fits, worker_resources, workers_that_fit
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.cluster.workers import Place
from eva_dist.config import ClusterConfig
from eva_dist.errors import PlacementError

_LOOK_EVERY_S = 1.0


def first_request(place: Place, cluster: ClusterConfig, stop: StopRequest) -> Request:
    """Return what the gang asks for; a cluster that has just been started has some seconds to know all its nodes.

    Raises:
        PlacementError: the cluster can never hold the gang.
        PreemptedError: `stop` was made while waiting.
    """
    deadline = time.monotonic() + place.settles_s
    while True:
        try:
            worker = worker_resources(cluster.resources, cluster.num_workers, known := place.nodes())
            request = Request(cluster.num_workers, cluster.shard_size, worker)
            check_fits(request, known)
            return request
        except PlacementError:
            if time.monotonic() >= deadline:
                raise
            stop.check()
            time.sleep(_LOOK_EVERY_S)


def wait_for_room(place: Place, request: Request, wait_s: float, stop: StopRequest) -> int:
    """Return how many workers the cluster can hold, once that is all of them or `wait_s` seconds have gone by.

    Raises:
        PreemptedError: `stop` was made while waiting.
    """
    deadline = time.monotonic() + wait_s
    while (room := workers_that_fit(request, place.nodes())) < request.num_workers and time.monotonic() < deadline:
        stop.check()
        time.sleep(min(_LOOK_EVERY_S, max(0.0, deadline - time.monotonic())))
    return room
