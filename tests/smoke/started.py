"""Jobs and `make` targets as a person starts them: processes of their own, which must end well."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """What a process printed; it ended well."""

    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of JSON on standard output."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]

    @property
    def line(self) -> dict[str, Any]:
        """The last line on standard output, which is JSON."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def run(*command: str, folder: Path = ROOT) -> Ended:
    """Run a command to its end; anything but exit code 0 is said with all that it printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return Ended(done.stdout, done.stderr)


def job(name: str, *overrides: str) -> Ended:
    """Run a job of `jobs/` from the clone's root."""
    return run(sys.executable, f"jobs/{name}", *overrides)


def make(target: str, *settings: str, folder: Path = ROOT, venv: Path = Path(sys.prefix)) -> Ended:
    """Run a target in this interpreter's environment, which is taken as it is."""
    made = [f"VENV={venv}", "-o", str(venv / ".ready")]  # `-o`: not to be made again, however old
    outer = {name: os.environ.pop(name) for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS") if name in os.environ}
    try:
        return run("make", *made, target, *settings, folder=folder)
    finally:
        os.environ |= outer
