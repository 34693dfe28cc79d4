"""Commands for jobs on a Ray cluster: submit and follow, list, show the log, stop.

Standard output is for results: a job's JSON line, a list, a log. All else goes to standard error.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from eva_dist.cli.clone import WorkingDir, find_clone, job_key
from eva_dist.cluster.submission import (
    FINGERPRINT_METADATA,
    KEY_METADATA,
    Job,
    JobServer,
    JobState,
    Submission,
    is_outcome,
    lines,
    submit_once,
)
from eva_dist.errors import ConfigError, JobServerError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as of a shell."""

_STOP_WAIT_S = "60"
"""How long Ray lets a stopped job end by itself: its own 3 seconds are too few to checkpoint."""

_POLL_S = 0.3

Address = Annotated[
    str | None,
    typer.Option(
        help="Job server of the cluster, e.g. http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the "
        "Ray on this machine. A token comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token.",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Submission id; `eva-dist jobs` lists them.")]


def connect(address: str | None) -> JobServer:
    """Return the cluster's job server; ray is imported here and not before."""
    try:
        from eva_dist.cluster.job_server import connect as connect_by_ray
    except ImportError as error:
        raise JobServerError(
            f"talking to a cluster needs ray ({error}); install it: pip install 'eva-dist[jobs]'"
        ) from error
    return connect_by_ray(address)


def submit(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[--] OVERRIDES...", help="Settings, as of jobs/precompute.py.")
    ] = None,
    address: Address = None,
    working_dir: WorkingDir = None,
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
    clone = find_clone(working_dir, "precompute.py")
    environment = job_environment(clone, runtime_env, env or [])
    try:
        key, fingerprints, notes = job_key(clone, overrides)
        server = connect(address)
        entrypoint = shlex.join(["python", "jobs/precompute.py", *overrides])
        submitted = submit_once(server, Submission(key, entrypoint, fingerprints, environment))
    except KeyboardInterrupt:
        _say("interrupted; look at `eva-dist jobs` for whether the job was submitted")
        raise typer.Exit(INTERRUPTED) from None
    for note in notes:
        _say(f"the artifact's fingerprint is not known here: {note}; settings and code stand for it")
    if submitted.attached:
        _say(f"{submitted.submission_id} is this job and runs already; following it")
    else:
        _say(f"submitted {submitted.submission_id} to {server.address}")
    if no_wait:
        print(submitted.submission_id)
        _say(_how_to(submitted.submission_id))
        return
    raise typer.Exit(follow(server, submitted.submission_id))


def jobs(
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the jobs that `eva-dist submit` submitted, the latest last."""
    ours = sorted((job for job in connect(address).jobs() if job.is_ours), key=lambda job: job.started or 0.0)
    if as_json:
        for job in ours:
            print(json.dumps(_facts(job)))
    else:
        _show(ours)


def logs(
    job: JobId,
    address: Address = None,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; exit with its result.")
    ] = False,
) -> None:
    """Print a job's log."""
    server = connect(address)
    _known(server, job)
    if following:
        raise typer.Exit(follow(server, job, everything_on_stdout=True))
    print(server.log(job), end="")


def stop(
    job: JobId,
    address: Address = None,
    timeout_s: Annotated[float, typer.Option(min=0.0, help="How long to wait until the job has ended.")] = 120.0,
) -> None:
    """Stop a job, and wait until it has really ended."""
    server = connect(address)
    found = _known(server, job)
    if found.state.ended:
        _say(f"{job} had ended already: {found.state.value}")
        return
    server.stop(job)
    _say(f"{job} has ended: {_ended(server, job, timeout_s).state.value}")


def follow(server: JobServer, submission_id: str, everything_on_stdout: bool = False) -> int:
    """Show a job's log until it ends; return the exit code to leave with.

    Its JSON lines go to standard output and the rest to standard error, unless all goes to standard output.
    """
    try:
        for line in lines(server.follow(submission_id)):
            result = everything_on_stdout or is_outcome(line)
            print(line, file=sys.stdout if result else sys.stderr, flush=True)
        job = _ended(server, submission_id, timeout_s=30.0)
    except KeyboardInterrupt:
        _say(f"interrupted; {submission_id} goes on")
        _say(_how_to(submission_id))
        return INTERRUPTED
    if job.state is not JobState.succeeded:
        with_code = "" if job.exit_code is None else f" with exit code {job.exit_code}"
        why = f": {job.message}" if job.exit_code is None and job.message else ""
        _say(f"{submission_id} {'was stopped' if job.state is JobState.stopped else 'failed'}{with_code}{why}")
    return job.result


def job_environment(clone: Path, file: Path | None, names: Sequence[str]) -> dict[str, Any]:
    """Return Ray's `runtime_env` for a job of that clone: the file's, and our variables of those names.

    Raises:
        ConfigError: the file is no runtime_env, or a variable is not set here.
    """
    environment = {} if file is None else _read_environment(file)
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"--env {' '.join(missing)}: not set here; export it, or leave the option out")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_WAIT_S} | (environment.get("env_vars") or {})
    return environment | {
        "working_dir": str(clone),
        "env_vars": variables | {name: os.environ[name] for name in names},
    }


def _read_environment(file: Path) -> dict[str, Any]:
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


def _known(server: JobServer, submission_id: str) -> Job:
    found = server.job(submission_id)
    if found is None:
        raise ConfigError(f"JOB={submission_id} is no job of {server.address}; `eva-dist jobs` lists them")
    return found


def _ended(server: JobServer, submission_id: str, timeout_s: float) -> Job:
    """Wait until a job has ended, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (job := _known(server, submission_id)).state.ended:
        if time.monotonic() >= deadline:
            raise JobServerError(
                f"{submission_id} is still {job.state.value} after {timeout_s:g} s; look at `eva-dist logs "
                f"{submission_id}`, or wait longer"
            )
        time.sleep(_POLL_S)
    return job


def _how_to(submission_id: str) -> str:
    return (
        f"follow it: eva-dist logs {submission_id} --follow\nstop it:   eva-dist stop {submission_id}\n"
        "both with the same --address, if you gave one"
    )


def _facts(job: Job) -> dict[str, Any]:
    return {
        "submission_id": job.submission_id,
        "status": job.state.value,
        "exit_code": job.exit_code,
        "fingerprint": job.metadata.get(FINGERPRINT_METADATA),
        "key": job.metadata[KEY_METADATA],
        "started": _time(job.started),
        "ended": _time(job.ended),
        "entrypoint": job.entrypoint,
    }


def _show(found: Sequence[Job]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("job", "status", "fingerprint", "started", "ended", "entry point", box=None, pad_edge=False)
    for job in found:
        facts = _facts(job)
        status = job.state.value if job.exit_code in (None, 0) else f"{job.state.value} ({job.exit_code})"
        columns = (facts["submission_id"], status, (facts["fingerprint"] or "-")[:12], facts["started"], facts["ended"])
        table.add_row(*(Text(column or "-", no_wrap=True) for column in columns), Text(job.entrypoint, overflow="fold"))
    # A pipe has no width: lines stay whole there.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
