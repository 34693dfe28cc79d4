"""`eva-dist jobs`: the jobs that `eva-dist submit` submitted."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from eva_dist.cli import job_access
from eva_dist.cluster.submission import FINGERPRINT_METADATA, KEY_METADATA, Job


def jobs(
    address: job_access.Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the jobs that `eva-dist submit` submitted, the latest last."""
    ours = sorted(
        (job for job in job_access.connect(address).jobs() if job.is_ours), key=lambda job: job.started or 0.0
    )
    if as_json:
        for job in ours:
            print(json.dumps(describe_job(job)))
    else:
        print_jobs_table(ours)


def describe_job(job: Job) -> dict[str, Any]:
    """Return a job's row, as `--json` prints it."""
    return {
        "submission_id": job.submission_id,
        "status": job.state.value,
        "exit_code": job.exit_code,
        "fingerprint": job.metadata.get(FINGERPRINT_METADATA),
        "key": job.metadata[KEY_METADATA],
        "started": iso_time(job.started),
        "ended": iso_time(job.ended),
        "entrypoint": job.entrypoint,
    }


def print_jobs_table(found: Sequence[Job]) -> None:
    """Print a row for each job."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("job", "status", "fingerprint", "started", "ended", "entry point", box=None, pad_edge=False)
    for job in found:
        facts = describe_job(job)
        status = job.state.value if job.exit_code in (None, 0) else f"{job.state.value} ({job.exit_code})"
        columns = (facts["submission_id"], status, (facts["fingerprint"] or "-")[:12], facts["started"], facts["ended"])
        table.add_row(*(Text(column or "-", no_wrap=True) for column in columns), Text(job.entrypoint, overflow="fold"))
    # A pipe has no width: lines stay whole there.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def iso_time(seconds: float | None) -> str | None:
    """Return seconds since 1970 as UTC in ISO 8601."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
