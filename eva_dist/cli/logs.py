"""`eva-dist logs`: a job's log, so far or until it ends."""

from typing import Annotated

import typer

from eva_dist.cli import job_access
from eva_dist.cli.job_access import Address, JobId, follow_job, require_job


def logs(
    job: JobId,
    address: Address = None,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; exit with its result.")
    ] = False,
) -> None:
    """Print a job's log."""
    server = job_access.connect(address)
    require_job(server, job)
    if following:
        raise typer.Exit(follow_job(server, job, everything_on_stdout=True))
    print(server.log(job), end="")
