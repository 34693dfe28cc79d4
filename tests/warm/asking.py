"""What is said between a server of warm processes and who asks it; the bare standard library, for all import it."""

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

VARIABLE = "EVA_DIST_TEST_WARM"
"""Environment variable with the name of the server's socket."""


def address(name: str) -> str:
    """Return the address of a socket that lies in no folder, so that nobody has to remove it."""
    return f"\0{name}"


def ask(name: str, files: Sequence[int], **asked: Any) -> tuple[int, socket.socket]:
    """Ask for a process with these files as 0, 1 and 2; return its id, and where its exit code will be told."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address(name))
    socket.send_fds(connection, [b"!"], files)
    connection.sendall(json.dumps(asked).encode())
    connection.shutdown(socket.SHUT_WR)
    return int(next_line(connection)), connection


def listen(connection: socket.socket) -> tuple[list[int], dict[str, Any]]:
    """Take what was asked on a connection: the files, and the rest."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    return list(files), json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))


def next_line(connection: socket.socket) -> bytes:
    """Read a line and not a byte more; empty if the other side is gone."""
    return b"".join(iter(lambda: connection.recv(1).strip(), b""))


class WarmProcess:
    """A process that a server has forked: what we use of `subprocess.Popen`."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self._connection = pid, connection
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._exit_code(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; `subprocess.TimeoutExpired` if it is not there in time."""
        code = self._exit_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("job", timeout or 0.0)
        return code

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close what the process told us through."""
        self._connection.close()

    def _exit_code(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(next_line(self._connection))
            self._connection.close()
        return self.returncode
