"""`eva-dist stop`: stop a job, and wait until it has ended."""

from typing import Annotated

import typer

from eva_dist.cli import job_access
from eva_dist.cli.job_access import Address, JobId, require_job, wait_until_ended
from eva_dist.cli.terminal import say


def stop(
    job: JobId,
    address: Address = None,
    timeout_s: Annotated[float, typer.Option(min=0.0, help="How long to wait until the job has ended.")] = 120.0,
) -> None:
    """Stop a job, and wait until it has really ended."""
    server = job_access.connect(address)
    found = require_job(server, job)
    if found.state.ended:
        say(f"{job} had ended already: {found.state.value}")
        return
    server.stop(job)
    say(f"{job} has ended: {wait_until_ended(server, job, timeout_s).state.value}")
