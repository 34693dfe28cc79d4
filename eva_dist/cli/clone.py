"""Which clone of eva_dist a command runs jobs of, and the key of a job with given settings."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

import eva_dist
from eva_dist.errors import ConfigError

WorkingDir = Annotated[
    Path | None,
    typer.Option(
        help="Clone of eva_dist to run; default: the current folder if it holds jobs/, else the clone in use.",
        show_default=False,
    ),
]


def find_clone(working_dir: Path | None, script: str) -> Path:
    """Return the absolute folder of the clone that holds `jobs/<script>`.

    Raises:
        ConfigError: there is none where we look.
    """
    in_use = Path(eva_dist.__file__).resolve().parents[1]
    candidates = [Path.cwd(), in_use] if working_dir is None else [working_dir]
    for folder in candidates:
        if (folder / "jobs" / script).is_file():
            return folder.resolve()
    given = "neither the current folder nor the installed package" if working_dir is None else str(working_dir)
    raise ConfigError(
        f"--working-dir: {given} {'holds' if working_dir is None else 'does not hold'} jobs/{script}; "
        "name a clone of eva_dist, e.g. --working-dir ~/eva-dist"
    )


def job_key(clone: Path, overrides: Sequence[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Check a job's settings and return its key, its artifacts' fingerprints, and notes on those that are unknown.

    The clone's `jobs/fingerprint.py` computes them in a process of its own: that needs hydra, torch and its code.

    Raises:
        typer.Exit: with the job's exit code (2: bad settings); it has said why on standard error.
        ConfigError: the overrides are no run (`--help`).
    """
    with tempfile.TemporaryDirectory() as outputs:
        done = subprocess.run(
            [
                *(sys.executable, str(clone / "jobs" / "fingerprint.py")),
                *insert_settings(overrides, [f"hydra.run.dir={outputs}", f"hydra.sweep.dir={outputs}"]),
            ],
            cwd=clone,  # relative paths are the clone's, as they will be in the job
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise typer.Exit(done.returncode)
    points = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"key"')]
    if not points:
        print(done.stdout, end="")
        raise ConfigError(f"OVERRIDES='{' '.join(overrides)}' is no run, so nothing was submitted; give settings alone")
    keys = [point["key"] for point in points]
    return (
        keys[0] if len(keys) == 1 else sha256(",".join(keys).encode()).hexdigest(),
        tuple(point["fingerprint"] for point in points if point["fingerprint"]),
        tuple(dict.fromkeys(point["note"] for point in points if point["note"])),
    )


def insert_settings(overrides: Sequence[str], more: Sequence[str]) -> list[str]:
    """Add settings beside the others: Hydra takes them in one run only, before or after its options (`-m`)."""
    first = next((i for i, word in enumerate(overrides) if "=" in word and not word.startswith("-")), len(overrides))
    return [*overrides[:first], *more, *overrides[first:]]
