"""What the commands for jobs share: reaching the job server, finding a job, following its log until it ends."""

import sys
import time
from typing import Annotated

import typer

from eva_dist.cli.terminal import say
from eva_dist.cluster.submission import Job, JobServer, JobState, is_outcome, lines
from eva_dist.errors import ConfigError, JobServerError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as of a shell."""

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


def follow_job(server: JobServer, submission_id: str, everything_on_stdout: bool = False) -> int:
    """Show a job's log until it ends; return the exit code to leave with.

    Its JSON lines go to standard output and the rest to standard error, unless all goes to standard output.
    """
    try:
        for line in lines(server.follow(submission_id)):
            result = everything_on_stdout or is_outcome(line)
            print(line, file=sys.stdout if result else sys.stderr, flush=True)
        job = wait_until_ended(server, submission_id, timeout_s=30.0)
    except KeyboardInterrupt:
        say(f"interrupted; {submission_id} goes on")
        say(following_commands(submission_id))
        return INTERRUPTED
    if job.state is not JobState.succeeded:
        with_code = "" if job.exit_code is None else f" with exit code {job.exit_code}"
        why = f": {job.message}" if job.exit_code is None and job.message else ""
        say(f"{submission_id} {'was stopped' if job.state is JobState.stopped else 'failed'}{with_code}{why}")
    return job.result


def require_job(server: JobServer, submission_id: str) -> Job:
    """Return the job with that id; `ConfigError` if the server knows none."""
    found = server.job(submission_id)
    if found is None:
        raise ConfigError(f"JOB={submission_id} is no job of {server.address}; `eva-dist jobs` lists them")
    return found


def wait_until_ended(server: JobServer, submission_id: str, timeout_s: float) -> Job:
    """Wait until a job has ended, and return it; `JobServerError` if that takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (job := require_job(server, submission_id)).state.ended:
        if time.monotonic() >= deadline:
            raise JobServerError(
                f"{submission_id} is still {job.state.value} after {timeout_s:g} s; look at `eva-dist logs "
                f"{submission_id}`, or wait longer"
            )
        time.sleep(_POLL_S)
    return job


def following_commands(submission_id: str) -> str:
    """Return the commands by which a person follows or stops a job."""
    return (
        f"follow it: eva-dist logs {submission_id} --follow\nstop it:   eva-dist stop {submission_id}\n"
        "both with the same --address, if you gave one"
    )
