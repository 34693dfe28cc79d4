"""Python processes that begin with torch and transformers imported: gang workers, and jobs.

What they run is what a fresh process would run, with the same arguments, files, folder and environment; only the
seconds of its imports are gone. Some tests start each command cold all the same.
"""

import os
import secrets
import select
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from tests.warm import server
from tests.warm.asking import WarmProcess, ask

ROOT = Path(__file__).parents[2]
_servers: list[subprocess.Popen[bytes]] = []
"""They end when their standard input does, that is with this process."""


@cache
def server_name() -> str:
    """Start the server of this process, once, and wait until it has imported all."""
    name = secrets.token_hex(8)
    with server.listen_at(name) as listening:
        command = [sys.executable, "-m", "tests.warm.server", str(listening.fileno())]
        files = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "pass_fds": [listening.fileno()]}
        _servers.append(subprocess.Popen(command, cwd=ROOT, **files))
    assert _servers[-1].stdout.readline() == b"ready\n"
    return name


def warm_workers() -> None:
    """Let workers that this process starts from now on, with Ray or without, be forked from our server."""
    server.start_workers_with(server_name())


class WarmJob(WarmProcess):
    """A script that runs as the leader of a new session; standard output is kept."""

    def __init__(self, command: list[str], cwd: Path, stderr: int, environment: dict[str, str]) -> None:
        reading, writing = os.pipe()
        try:
            with open(os.devnull) as nothing:
                asked = {"argv": command, "cwd": str(cwd), "environment": environment, "is_driver": True}
                super().__init__(*ask(server_name(), [nothing.fileno(), writing, stderr], **asked))
        finally:
            os.close(writing)
        self.stdout = os.fdopen(reading, encoding="utf-8")

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Return all of its standard output, when it has ended."""
        deadline, parts = time.monotonic() + timeout, []
        while True:
            if not select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired("job", timeout)
            if not (part := os.read(self.stdout.fileno(), 1 << 16)):
                break
            parts.append(part)
        self.wait(max(0.0, deadline - time.monotonic()))
        return b"".join(parts).decode(), None

    def close(self) -> None:
        """Close what the process told us through."""
        self.stdout.close()
        super().close()
