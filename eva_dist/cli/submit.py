"""`eva-dist submit`: run jobs/precompute.py on a Ray cluster, once however often it is submitted."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from eva_dist.cli import clone, job_access
from eva_dist.cli.job_access import INTERRUPTED, Address, follow_job, following_commands
from eva_dist.cli.terminal import say
from eva_dist.cluster.submission import Submission, submit_once
from eva_dist.errors import ConfigError

_STOP_WAIT_S = "60"
"""How long Ray lets a stopped job end by itself: its own 3 seconds are too few to checkpoint."""


def submit(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[--] OVERRIDES...", help="Settings, as of jobs/precompute.py.")
    ] = None,
    address: Address = None,
    working_dir: clone.WorkingDir = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit, print the job's id, and leave.")] = False,
    runtime_env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ray runtime_env as YAML: pip, env_vars, ...")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Hand this environment variable of ours to the job, e.g. HF_TOKEN; repeat."),
    ] = None,
) -> None:
    """Run jobs/precompute.py on a cluster, follow its log, and exit with its result.

    The same job runs once: while it is pending or running, submitting it again follows the one that runs. Standard
    output ends with the job's JSON line; Ctrl-C leaves the job running.
    """
    overrides = overrides or []
    folder = clone.find_clone(working_dir, "precompute.py")
    environment = job_environment(folder, runtime_env, env or [])
    try:
        key, fingerprints, notes = clone.job_key(folder, overrides)
        server = job_access.connect(address)
        entrypoint = shlex.join(["python", "jobs/precompute.py", *overrides])
        submitted = submit_once(server, Submission(key, entrypoint, fingerprints, environment))
    except KeyboardInterrupt:
        say("interrupted; look at `eva-dist jobs` for whether the job was submitted")
        raise typer.Exit(INTERRUPTED) from None
    for note in notes:
        say(f"the artifact's fingerprint is not known here: {note}; settings and code stand for it")
    if submitted.attached:
        say(f"{submitted.submission_id} is this job and runs already; following it")
    else:
        say(f"submitted {submitted.submission_id} to {server.address}")
    if no_wait:
        print(submitted.submission_id)
        say(following_commands(submitted.submission_id))
        return
    raise typer.Exit(follow_job(server, submitted.submission_id))


def job_environment(folder: Path, file: Path | None, names: Sequence[str]) -> dict[str, Any]:
    """Return Ray's `runtime_env` for a job of the clone in `folder`: the file's, and our variables of those names.

    Raises:
        ConfigError: the file is no runtime_env, or a variable is not set here.
    """
    environment = {} if file is None else read_runtime_env(file)
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"--env {' '.join(missing)}: not set here; export it, or leave the option out")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_WAIT_S} | (environment.get("env_vars") or {})
    return environment | {
        "working_dir": str(folder),
        "env_vars": variables | {name: os.environ[name] for name in names},
    }


def read_runtime_env(file: Path) -> dict[str, Any]:
    """Read `--runtime-env`; `ConfigError` if it is no runtime_env of ours to use."""
    import yaml

    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--runtime-env {file} cannot be read ({error}); give a YAML file") from error
    if not isinstance(found, dict) or not isinstance(found.get("env_vars") or {}, dict):
        raise ConfigError(f"--runtime-env {file} must be a mapping, e.g. 'pip: [...]' and 'env_vars: {{NAME: value}}'")
    if "working_dir" in found:
        raise ConfigError(f"--runtime-env {file} sets working_dir; take it out and give --working-dir")
    return found
