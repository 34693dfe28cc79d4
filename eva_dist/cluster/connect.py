"""Connect to a Ray cluster and hold a place in it."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from eva_dist.cluster.placement import Request, Resources, check_fits
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.config import ClusterConfig
from eva_dist.errors import ClusterBusyError, GangError, PreemptedError

_log = logging.getLogger(__name__)

_SAY_AFTER_S = 5.0
_LOOK_EVERY_S = 1.0
_CONNECT_S = 5.0
_SOCKET_NAME_BYTES = 103 if sys.platform == "darwin" else 107


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[None]:
    """Connect to the cluster, or start Ray on this machine; leave as found."""
    if ray.is_initialized():
        yield
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    asked = f"cluster.address={address}" if cluster.address else f"RAY_ADDRESS={address}"
    local: dict[str, Any] = {}
    if address == "local":
        _refuse_long_sockets()
        local = {"num_cpus": max(cluster.num_workers, os.cpu_count() or 1), "include_dashboard": False}
    _refuse_unreachable(address, asked)
    with _own_sigterm():
        try:
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING, **local)
        except SystemExit as error:  # of the handler that Ray puts in while it starts
            raise PreemptedError("asked to end (SIGTERM): nothing had begun") from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(asked, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Resources]:
    """Return what each node that is alive has in all, by Ray's names; what Ray counts for itself is left out."""
    return [
        {key: amount for key, amount in node["Resources"].items() if not _is_rays_own(key)}
        for node in ray.nodes()
        if node["Alive"]
    ]


@contextmanager
def reserved(request: Request, timeout_s: float, stop: StopRequest) -> Iterator[PlacementGroup]:
    """Reserve one bundle a shard group, spread over the nodes; give it back when the context closes.

    All or nothing: two gangs that each hold half of what they need cannot starve each other.

    Raises:
        ClusterBusyError: others held the resources for `timeout_s`.
        PlacementError: nodes went away meanwhile.
        PreemptedError: `stop` was made while waiting.
    """
    replicas = request.num_workers // request.shard_size
    bundles: list[dict[str, float]] = [request.shard_group or {"CPU": 0.001} for _ in range(replicas)]
    group = placement_group(bundles, strategy="SPREAD")
    try:
        _wait(group, request, timeout_s, stop)
        yield group
    finally:
        with suppress(RayError):  # the cluster itself is gone
            remove_placement_group(group)


def _wait(group: PlacementGroup, request: Request, timeout_s: float, stop: StopRequest) -> None:
    started, said = time.monotonic(), False
    asks = f"{request.num_workers // request.shard_size} x {request.shard_group}"
    while not group.wait(_LOOK_EVERY_S):
        waited = time.monotonic() - started
        stop.check()
        check_fits(request, nodes())
        if waited > timeout_s:
            raise ClusterBusyError(
                f"{asks} were not free within cluster.timeout_s={timeout_s:g}; free now: {_free()}. "
                "Wait until others are done, or lower cluster.num_workers"
            )
        if waited > _SAY_AFTER_S and not said:
            _log.warning("waiting for %s; free now: %s", asks, _free())
            said = True


def _free() -> dict[str, float]:
    free = ray.available_resources()
    return {key: amount for key, amount in free.items() if not _is_rays_own(key)}


def _is_rays_own(key: str) -> bool:
    """Tell whether Ray counts this for itself: node names, memory, and what placement groups have reserved."""
    return key.startswith("node:") or key in ("memory", "object_store_memory") or "_group_" in key or key == "bundle"


def _refuse_unreachable(address: str, asked: str) -> None:
    """Raise `GangError` if nothing listens at `host:port`: Ray itself would try for minutes."""
    if address.startswith(("http://", "https://")):
        raise _unreachable(asked, "that is a job server, for `eva-dist submit`")
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return  # auto, local, ray://...: Ray says quickly what is wrong
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise _unreachable(asked, error) from error


def _unreachable(asked: str, why: object) -> GangError:
    remedy = "unset RAY_ADDRESS, or " if asked.startswith("RAY_ADDRESS") else ""
    return GangError(
        f"{asked} cannot be reached ({why}); start one with `ray start --head`, or to run on this machine "
        f"{remedy or 'set '}cluster.address=local"
    )


def _refuse_long_sockets() -> None:
    """Raise `GangError` if the sockets of a Ray that is started here would have longer names than the system allows."""
    variables = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)  # as Ray looks
    variable = next((name for name in variables if name in os.environ), None)
    if variable is None:
        return  # it takes /tmp
    folder = os.environ[variable]
    session = f"session_2026-12-31_23-59-59_999999_{os.getpid()}"
    over = len(os.fsencode(os.path.join(folder, "ray", session, "sockets", "plasma_store"))) - _SOCKET_NAME_BYTES
    if over > 0:
        raise GangError(
            f"{variable}={folder} is {over} bytes too long: the names of Ray's sockets, which lie in it, have at most "
            f"{_SOCKET_NAME_BYTES} bytes; set RAY_TMPDIR=/tmp"
        )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM that is there: `ray.init` puts in its own, which aborts the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and before is not signal.SIG_DFL:
            signal.signal(signal.SIGTERM, before)
