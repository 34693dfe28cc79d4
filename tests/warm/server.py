"""A process that has its imports done, and forks for whoever asks: `python -m tests.warm.server FD`, of a socket.

Ray is not among what it has imported: it reads its environment when it is.
"""

import importlib
import os
import runpy
import secrets
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from eva_dist.cluster import one_process
from tests.warm.asking import VARIABLE, WarmProcess, address, ask, listen

MODULES = (
    *("eva_dist.cluster.gang_worker", "eva_dist.run.prepare", "eva_dist.run.sweep", "hydra"),
    "transformers.models.llama.modeling_llama",
)


def serve(listening: socket.socket, lifeline: int) -> dict[str, Any]:
    """Fork for each request until `lifeline` ends; return in the new processes, with what was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    while lifeline not in select.select([listening, lifeline], [], [])[0]:
        connection, _ = listening.accept()
        with connection:
            files, asked = listen(connection)
            if os.fork() == 0:
                os.close(lifeline)
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _leave_one_that_waits(connection)
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                return asked
            for file in files:
                os.close(file)
    os._exit(0)


def _leave_one_that_waits(connection: socket.socket) -> None:
    """Fork once more; who does not return tells the id of the one that does, and its exit code in the end."""
    if (child := os.fork()) == 0:
        return
    os.closerange(0, 3)
    try:
        connection.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        os._exit(0)


def become(asked: dict[str, Any]) -> None:
    """Take on what a fresh process would have got, and run the script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without job control starts us with it ignored
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent) if sys.argv[0].endswith(".py") else asked["cwd"]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    if asked.get("is_driver"):
        os.setsid()
        _serve_own_workers()
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _serve_own_workers() -> None:
    """Fork a server for the workers of this driver: they belong to its session, and it ends with the driver."""
    name = secrets.token_hex(8)
    reading, writing = os.pipe()
    listening = listen_at(name)
    if os.fork() == 0:
        os.close(writing)
        become(serve(listening, reading))
        sys.exit()
    os.close(reading)
    listening.close()
    start_workers_with(name)


def listen_at(name: str) -> socket.socket:
    """Return a socket for a server."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address(name))
    listening.listen(64)
    return listening


def start_workers_with(name: str) -> None:
    """Let every raylet that this process starts, and the process itself, fork workers from the server of that name."""
    from ray._private import ray_constants

    os.environ[VARIABLE] = name
    ray_constants.SETUP_WORKER_FILENAME = str(Path(__file__).with_name("launcher.py"))

    def start_process(connection: socket.socket, environment: dict[str, str]) -> WarmProcess:
        command = {"argv": ["eva_dist.cluster.worker_process"], "cwd": os.getcwd(), "environment": environment}
        return WarmProcess(*ask(name, [connection.fileno(), 2, 2], **command))

    one_process.start_process = start_process


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    print("ready", flush=True)
    become(serve(socket.socket(fileno=int(sys.argv[1])), lifeline=0))
