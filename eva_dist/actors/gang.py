"""The gang: all actors of one run, started together, driven in step, and gone together.

Every call goes to all members and has a timeout. The first error, a lost member or a
member that does not answer ends the run: the gang is killed whole (a member that raised
leaves its peers inside a collective, so there is nothing to save) and the worker's own
traceback is raised. Recovery is a later issue; `max_restarts=0` keeps Ray from trying.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from eva_dist.actors.worker import GangWorker
from eva_dist.config import ClusterConfig, OnMaxSteps
from eva_dist.controller import PassResult, PassState, StepDecision, StepReport
from eva_dist.engine import finish, run_pass
from eva_dist.errors import EvaDistError, GangError, GangTimeoutError, WorkerFailedError
from eva_dist.plan import make_plan
from eva_dist.session import Assignment

_GRACE_S = 2.0
"""How long to wait, after a first error, for the members that failed because of it or before it."""


def run_on_gang(assignment: Assignment, on_step: Callable[[PassState], None]) -> PassResult:
    """Run a whole pass on a gang of `cluster.num_workers` actors.

    Raises:
        GangError: a worker failed, was lost, or did not answer; every actor is gone.
        EvaDistError: what the pass itself refuses (data, layers, activations).
    """
    config = assignment.config
    with _ray(config.cluster), Gang.start(assignment) as gang:
        started = time.perf_counter()
        gang.call("join", gang.call_one(0, "address"))
        gang.call("load")
        probe, layout = gang.call_first(config.cluster.shard_size, "probe")
        plan = make_plan(assignment.layers, probe.groups, len(gang.members))
        gang.call("begin", plan, probe, layout)
        load_seconds = time.perf_counter() - started
        owners = {group.index: group.owner for group in plan.groups}

        def step(decision: StepDecision) -> Sequence[StepReport]:
            nonlocal owners
            gang.move(owners, decision.owners)
            owners = dict(decision.owners)
            return gang.call("step", decision)

        accept = config.eva.on_max_steps is OnMaxSteps.accept
        state, seconds = run_pass(plan, config.eva.tau, config.eva.max_steps, step, on_step, accept)
        components = {group: found for part in gang.call("components") for group, found in part.items()}
        gang.call("leave")
    state = replace(state, seconds={"load": load_seconds, **state.seconds})
    return finish(state, components, seconds)


@dataclass(frozen=True)
class Gang:
    """The members in order of `global_rank`."""

    members: tuple[Any, ...]
    timeout_s: float

    @classmethod
    @contextmanager
    def start(cls, assignment: Assignment) -> Iterator["Gang"]:
        """Start one actor a worker; kill them all when the context closes, however it closes."""
        cluster = assignment.config.cluster
        request = _request(cluster)
        assignment = replace(assignment, threads=_threads(cluster, request))
        actor = ray.remote(GangWorker)
        members: list[Any] = []
        try:
            for global_rank in range(cluster.num_workers):
                options = actor.options(
                    max_restarts=0,
                    num_cpus=request.get("CPU", 0),
                    num_gpus=request.get("GPU", 0),
                    resources={key: amount for key, amount in request.items() if key not in ("CPU", "GPU")},
                    runtime_env={"env_vars": _environment(assignment.threads)},
                )
                members.append(options.remote(assignment, global_rank, cluster.num_workers))
            yield cls(tuple(members), cluster.timeout_s)
        finally:
            for member in members:
                ray.kill(member, no_restart=True)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on every member and return their answers by `global_rank`."""
        return self._wait(method, {i: getattr(m, method).remote(*arguments) for i, m in enumerate(self.members)})

    def call_one(self, global_rank: int, method: str, *arguments: Any) -> Any:
        """Call a method on one member and return its answer."""
        return self._wait(method, {global_rank: getattr(self.members[global_rank], method).remote(*arguments)})[0]

    def call_first(self, count: int, method: str) -> Any:
        """Call a method on the first `count` members together and return the answer of `global_rank` 0."""
        return self._wait(method, {i: getattr(m, method).remote() for i, m in enumerate(self.members[:count])})[0]

    def move(self, owners: Mapping[int, int], new_owners: Mapping[int, int]) -> None:
        """Hand the SVDs of groups that change their owner to the new one."""
        moved = tuple(group for group, owner in new_owners.items() if owners[group] != owner)
        if not moved:
            return
        given = {group: svd for part in self.call("give", moved) for group, svd in part.items()}
        for owner in sorted({new_owners[group] for group in given}):
            self.call_one(owner, "receive", {g: svd for g, svd in given.items() if new_owners[g] == owner})

    def _wait(self, method: str, pending: dict[int, Any]) -> list[Any]:
        rank_of = {ref: global_rank for global_rank, ref in pending.items()}
        deadline = time.monotonic() + self.timeout_s
        answers: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        waiting = list(rank_of)
        while waiting and time.monotonic() < deadline:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            for ref in ready:
                try:
                    answers[rank_of[ref]] = ray.get(ref)
                except RayError as error:
                    failures[rank_of[ref]] = error
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        if failures:
            raise _failure(method, failures)
        if waiting:
            late = sorted(rank_of[ref] for ref in waiting)
            raise GangTimeoutError(
                f"global_rank {', '.join(map(str, late))} did not answer {method} in "
                f"cluster.timeout_s={self.timeout_s}; look at its log, or raise cluster.timeout_s"
            )
        return [answers[global_rank] for global_rank in sorted(answers)]


def _failure(method: str, failures: dict[int, Exception]) -> EvaDistError:
    """Return the error to raise: the cause, rather than the peers' broken connections that follow from it."""
    global_rank, error = min(failures.items(), key=lambda item: (_blame(item[1]), item[0]))
    cause = getattr(error, "cause", None)
    if isinstance(cause, EvaDistError):
        return cause
    what = "died" if isinstance(error, RayActorError) else "failed"
    others = (
        f" (then global_rank {', '.join(str(r) for r in sorted(failures) if r != global_rank)})"
        if len(failures) > 1
        else ""
    )
    return WorkerFailedError(f"global_rank {global_rank} {what} in {method}{others}; its own report:\n{error}")


def _blame(error: Exception) -> int:
    """Order failures by how likely they are the first: our own errors, deaths, others, broken connections."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EvaDistError):
        return 0
    if isinstance(error, ActorDiedError):
        return 1
    text = str(error).lower()
    follows = isinstance(error, RayTaskError) and any(word in text for word in ("gloo", "nccl", "connection closed"))
    return 3 if follows else 2


@contextmanager
def _ray(cluster: ClusterConfig) -> Iterator[None]:
    """Connect to the cluster, or start Ray on this machine; leave as found."""
    if ray.is_initialized():
        yield
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {}
    if address == "local":
        local = {"num_cpus": max(cluster.num_workers, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise GangError(
            f"cluster.address={address} cannot be reached ({error}); start one with `ray start --head`, "
            "or set cluster.address=null to run on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _request(cluster: ClusterConfig) -> dict[str, float]:
    """Return what one worker asks of Ray: as configured, else a GPU each where there are enough, else a CPU.

    Raises:
        GangError: the cluster can never give that much.
    """
    has = ray.cluster_resources()
    request = dict(cluster.resources)
    if not request:
        if 0 < has.get("GPU", 0.0) < cluster.num_workers:
            raise GangError(
                f"cluster.num_workers={cluster.num_workers} is more than the {has['GPU']:g} GPUs of the cluster; "
                "lower it, or run on CPUs with '+cluster.resources.CPU=1'"
            )
        request = {"CPU": 1.0, "GPU": 1.0} if has.get("GPU", 0.0) >= cluster.num_workers else {"CPU": 1.0}
    short = {
        k: amount * cluster.num_workers
        for k, amount in request.items()
        if amount * cluster.num_workers > has.get(k, 0.0)
    }
    if short:
        raise GangError(
            f"cluster.num_workers={cluster.num_workers} with cluster.resources={request} asks for {short}, but the "
            f"cluster has { ({k: has.get(k, 0.0) for k in short}) }; lower cluster.num_workers or cluster.resources"
        )
    return request


def _threads(cluster: ClusterConfig, request: dict[str, float]) -> int:
    if cluster.threads_per_worker is not None:
        return cluster.threads_per_worker
    if cluster.address is None and "RAY_ADDRESS" not in os.environ:
        return max(1, (os.cpu_count() or 1) // cluster.num_workers)
    return max(1, int(request.get("CPU", 1)))


def _environment(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
