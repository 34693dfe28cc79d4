"""One computation a fingerprint and cluster: a named actor that lives as long as the driver that made it."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eva_dist.cluster.stop_request import StopRequest
from eva_dist.errors import GangError

_log = logging.getLogger(__name__)

_NAMESPACE = "eva_dist"
_LOOK_EVERY_S = 1.0
_START_S = 60.0
_NOTHING = "another driver computes the same, and this one had nothing of its own"


class _Holder:
    """Says who computes; Ray ends it with its driver, however that ends."""

    def __init__(self, who: str) -> None:
        self._who = who

    def who(self) -> str:
        return self._who


@contextmanager
def exclusive_run(fingerprint: str, stop: StopRequest) -> Iterator[None]:
    """Acquire the cluster-wide lock for this fingerprint, waiting while another driver holds it.

    After a wait, what was to be computed may be in the store: look before you compute.

    Raises:
        GangError: this node takes no actor.
        PreemptedError: `stop` was made while waiting.
    """
    holder = _acquire_name(fingerprint, stop)
    try:
        yield
    finally:
        with suppress(RayError):  # the cluster itself is gone
            ray.kill(holder)


def _acquire_name(fingerprint: str, stop: StopRequest) -> Any:
    name, waited = f"run-{fingerprint}", False
    context = ray.get_runtime_context()
    who = f"job {context.get_job_id()} on {ray.util.get_node_ip_address()}"
    here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)  # it must not outlive or precede us
    holder: Any = ray.remote(num_cpus=0, max_restarts=0)(_Holder)
    options = {"name": name, "namespace": _NAMESPACE, "lifetime": "non_detached", "scheduling_strategy": here}
    while True:
        stop.check(_NOTHING)
        try:
            taken = holder.options(**options).remote(who)
            ray.get(taken.who.remote(), timeout=_START_S)
            return taken
        except ValueError:  # the name is taken
            if not waited:
                _log.warning("%s computes %s already; waiting for it", _holder_of(name), fingerprint[:16])
            waited = True
        except (RayActorError, GetTimeoutError) as error:
            raise GangError(
                f"the cluster could not start an actor on this node: {error}; look at `ray status`"
            ) from error
        _wait_for_end(name, stop)


def _wait_for_end(name: str, stop: StopRequest) -> None:
    with suppress(ValueError, RayActorError, GetTimeoutError):  # it is gone, or about to
        while True:
            stop.check(_NOTHING)
            ray.get(ray.get_actor(name, namespace=_NAMESPACE).who.remote(), timeout=_START_S)
            time.sleep(_LOOK_EVERY_S)


def _holder_of(name: str) -> str:
    with suppress(ValueError, RayActorError, GetTimeoutError):
        return str(ray.get(ray.get_actor(name, namespace=_NAMESPACE).who.remote(), timeout=_START_S))
    return "another driver"
