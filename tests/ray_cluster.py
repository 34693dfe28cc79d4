"""A cluster of real `ray start` processes on this machine, apart from every other: own ports, folder and token."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_MARK = "EVA_DIST_TEST_CLUSTER"
"""Environment variable that every process of a cluster inherits: they are told by it from those of other clusters."""


class RayCluster:
    """The head, and nodes that join it; a context that leaves no process behind.

    `environment` is that of a client of this cluster; it holds the token where `with_token`. `agent_ports` are
    those of the nodes' own agents, in order of starting.
    """

    def __init__(self, with_token: bool = True) -> None:
        self.mark = secrets.token_hex(8)
        # Ray's sockets lie deep below it, and their paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="ev"))
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.agent_ports: list[int] = []
        self._head_port, self._dashboard_port = free_ports(2)
        self.address = f"http://127.0.0.1:{self._dashboard_port}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = environment | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # `python` of jobs is ours
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if with_token:
            token = self.folder / "token"
            token.write_text(secrets.token_hex(32))
            self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            stack.callback(self._kill_what_is_left)
            self.stop()

    def start_head(self, num_cpus: int = 1, **resources: float) -> None:
        """Start the head and wait until it takes jobs."""
        (client_port,) = free_ports(1)
        self._start(
            *("--head", f"--port={self._head_port}", f"--dashboard-port={self._dashboard_port}"),
            *(f"--ray-client-server-port={client_port}",),
            num_cpus=num_cpus,
            resources=resources,
        )
        self._wait_until_jobs_are_taken()

    def start_node(self, num_cpus: int = 1, **resources: float) -> None:
        """Start another node, as on another machine: its own raylet, object store, agents and folder."""
        self._start(f"--address=127.0.0.1:{self._head_port}", num_cpus=num_cpus, resources=resources)

    def run(self, *command: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Run a client's command to its end, from the clone."""
        return subprocess.run(command, **self._as_client(changes), capture_output=True, timeout=120, check=False)

    def begin(self, *command: str, **changes: Any) -> subprocess.Popen[str]:
        """Start a client's command, from the clone."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **self._as_client(changes), **pipes)

    def node_folder(self, index: int) -> Path:
        """Return where a node keeps its session, in order of starting."""
        return self.folder / str(index)

    def processes(self) -> dict[int, str]:
        """Return the command lines of the living processes of this cluster, jobs and workers included."""
        return {pid: text for pid, text in _processes_with(f"{_MARK}={self.mark}").items() if pid != os.getpid()}

    def stop(self) -> None:
        """End the nodes as `ray start --block` is ended: SIGTERM; the head goes last."""
        for node in reversed(self._nodes):
            node.send_signal(signal.SIGTERM)
            node.wait(timeout=60)
        self._nodes.clear()

    def _start(self, *options: str, num_cpus: int, resources: dict[str, float]) -> None:
        agent, agent_grpc, env_agent, metrics = free_ports(4)
        self.agent_ports.append(agent)
        folder = self.node_folder(len(self._nodes))
        log = (self.folder / f"{len(self._nodes)}.log").open("wb")
        with log:
            self._nodes.append(
                subprocess.Popen(
                    [
                        *("ray", "start", "--block", *options, f"--temp-dir={folder}", f"--num-cpus={num_cpus}"),
                        *(f"--resources={json.dumps(resources)}", "--object-store-memory=100000000"),
                        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
                        *(f"--runtime-env-agent-port={env_agent}", f"--metrics-export-port={metrics}"),
                        "--disable-usage-stats",
                    ],
                    env=self.environment | {_MARK: self.mark},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _wait_until_jobs_are_taken(self) -> None:
        deadline = time.monotonic() + 60
        while (listed := self.run("ray", "job", "list", "--address", self.address)).returncode:
            if time.monotonic() > deadline or self._nodes[0].poll() is not None:
                raise AssertionError(f"no head: {listed.stderr}\n{(self.folder / '0.log').read_text()}")
            time.sleep(0.5)

    def _as_client(self, changes: dict[str, Any]) -> dict[str, Any]:
        environment = self.environment | changes.pop("environment", {})
        return {"env": environment, "cwd": Path(__file__).parents[1], "text": True, **changes}

    def _kill_what_is_left(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _processes_with(mark: str) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found
