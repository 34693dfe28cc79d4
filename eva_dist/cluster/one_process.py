"""One worker without Ray, in a process beside the driver.

What holds for an actor holds for it: it may be killed, hang or raise, and the driver begins another one from the
last checkpoint. To start it takes no cluster, and its imports run while the driver does its own.
"""

import itertools
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eva_dist
from eva_dist.cluster.environment import needs_no_ray, worker_environment
from eva_dist.cluster.placement import Request, Resources
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.cluster.workers import BEGIN, CallError
from eva_dist.config import ClusterConfig

if TYPE_CHECKING:
    from eva_dist.calibration.controller import PointState
    from eva_dist.calibration.worker import Assignment

_ahead: list["WorkerProcess"] = []
"""What `worker_ahead` has started and nobody has taken yet."""


class OneProcess:
    """This machine, for a gang of one."""

    settles_s = 0.0

    def nodes(self) -> list[Resources]:
        """Return what this machine has."""
        import torch  # when a worker is started ahead, there is no time for it

        gpus = torch.cuda.device_count()
        return [{"CPU": float(os.cpu_count() or 1)} | ({"GPU": float(gpus)} if gpus else {})]

    @contextmanager
    def start(self, assignment: "Assignment", request: Request, stop: StopRequest) -> Iterator["WorkerProcess"]:
        """Take the process that was started ahead, or start one; kill it when the context closes."""
        from eva_dist.cluster import gang_worker  # it brings in all that a worker needs

        environment = worker_environment(assignment.config.cluster, request)
        process = next((one for one in _ahead if one.environment == environment), None)
        if process is None:
            process = WorkerProcess(environment)
        else:
            _ahead.remove(process)
        try:
            process.ask(0, BEGIN, gang_worker.make_alone, assignment, bool(request.worker.get("GPU")))
            yield process
        finally:
            process.end()

    def exclusive_run(self, fingerprint: str, stop: StopRequest) -> nullcontext[None]:
        """Return a lock that is free: no driver shares this place with another."""
        return nullcontext()

    def metrics(self, fingerprint: str, repo_id: str) -> "Callable[[PointState], None]":
        """Return what shows nothing: nobody watches this place."""
        return lambda state: None


@contextmanager
def worker_ahead(cluster: ClusterConfig) -> Iterator[None]:
    """While open, a run on this cluster finds its worker's process started, if it is to be one beside the driver."""
    if not needs_no_ray(cluster):
        yield
        return
    process = WorkerProcess(worker_environment(cluster, Request(1, 1, cluster.resources)))
    _ahead.append(process)
    try:
        yield
    finally:
        if process in _ahead:  # else who took it has ended it
            _ahead.remove(process)
            process.end()


class WorkerProcess:
    """`Workers` of one: a process, asked over a pair of sockets. What stands for an answer is a future of bytes."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = start_process(theirs, os.environ | environment)
        self._connection = Connection(ours.detach())
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[tuple[bool, bytes]]] = {}
        self._is_gone = False
        self._lock = threading.Lock()  # of `_waiting` and `_is_gone`: the driver has several threads that ask
        self._calls: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        # threads of their own: a process that stands still takes nothing in, and who asks must not stand still with it
        threading.Thread(target=self._send_calls, name="calls", daemon=True).start()
        threading.Thread(target=self._take_answers, name="answers", daemon=True).start()

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._calls.put(None)

    def __len__(self) -> int:
        return 1

    def ask(self, global_rank: int, method: str, *arguments: Any) -> "Future[tuple[bool, bytes]]":
        """Begin a call; return the future of its answer."""
        answer: Future[tuple[bool, bytes]] = Future()
        number = next(self._numbers)
        content = pickle.dumps((number, arguments), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            if self._is_gone:
                answer.set_exception(self._lost())
                return answer
            self._waiting[number] = answer
            self._calls.put((method, content))
        return answer

    def wait(self, asked: "Sequence[Future[tuple[bool, bytes]]]", timeout_s: float) -> list[Any]:
        """Return those calls that have an answer, as soon as there is one."""
        return list(wait(asked, timeout_s, FIRST_COMPLETED).done)

    def answer(self, asked: "Future[tuple[bool, bytes]]") -> Any:
        """Wait for an answer, and return it or raise `CallError`."""
        is_good, content = asked.result()
        found = pickle.loads(content)
        if is_good:
            return found
        report, cause = found
        raise CallError(report, cause)

    def _send_calls(self) -> None:
        with suppress(OSError):  # it is gone, and `_take_answers` says so
            for method, content in iter(self._calls.get, None):
                self._connection.send_bytes(method.encode())
                self._connection.send_bytes(content)

    def _take_answers(self) -> None:
        try:
            while True:
                number, is_good = pickle.loads(self._connection.recv_bytes())
                content = self._connection.recv_bytes()
                with self._lock:
                    answer = self._waiting.pop(number)
                answer.set_result((is_good, content))
        except (EOFError, OSError):
            with self._lock:
                self._is_gone = True
                left = list(self._waiting.values())
                self._waiting.clear()
            for answer in left:
                answer.set_exception(self._lost())

    def _lost(self) -> CallError:
        code = self._process.wait()
        return CallError(f"its process (pid {self._process.pid}) ended with exit code {code}", is_lost=True)


def start_process(connection: socket.socket, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a worker's process, which is asked on `connection`; what it prints goes to our standard error."""
    root = str(Path(eva_dist.__file__).parents[1])
    paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "eva_dist.cluster.worker_process"],  # -P: nothing is imported from where we stand
        stdin=connection.fileno(),
        stdout=2,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
    )
