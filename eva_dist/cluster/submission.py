"""Jobs on a cluster: the same job runs once, whoever submits it and how often. No ray here; `JobServer` is the seam.

A job is known by its `key`: what it computes and where that goes, not how it is run. Its submission id is made of
the key and the attempt, and a job server takes an id once only, so of two that submit at the same moment one wins
and the other follows the winner's log. While an attempt is pending or running, the job is attached to; once
it has ended a new attempt may begin, which after a success is answered from the store.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from eva_dist.errors import JobServerError

KEY_LENGTH = 16
"""Hex digits of a key in a submission id."""

KEY_METADATA = "eva_dist.key"
FINGERPRINT_METADATA = "eva_dist.fingerprint"
"""Metadata of our jobs: their whole key, and the fingerprints of their artifacts where they were known."""

_RACES = 10
"""How often someone else may take the next attempt under our hands and end before we see it."""

_OUTCOME = {"url", "fingerprint", "status"}
"""Keys by which a line of a job's log is known as an outcome (design: command contract)."""


class JobState(Enum):
    """Where a job stands; `pending` until its environment is set up and its entry point runs."""

    pending = "PENDING"
    running = "RUNNING"
    succeeded = "SUCCEEDED"
    failed = "FAILED"
    stopped = "STOPPED"

    @property
    def ended(self) -> bool:
        """Whether the job will never change again."""
        return self not in (JobState.pending, JobState.running)


@dataclass(frozen=True)
class Job:
    """What a job server tells of a job; times in seconds since 1970, `exit_code` of the entry point where known."""

    submission_id: str
    state: JobState
    entrypoint: str
    metadata: dict[str, str] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    message: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether `eva-dist submit` submitted it."""
        return KEY_METADATA in self.metadata

    @property
    def result(self) -> int:
        """Exit code to pass on: the entry point's (128 + its signal if one killed it), else 0 for success and 1."""
        if self.exit_code is None:
            return 0 if self.state is JobState.succeeded else 1
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


@dataclass(frozen=True)
class Submission:
    """What to run and under which key (hex). `runtime_env` is Ray's, its `working_dir` the clone."""

    key: str
    entrypoint: str
    fingerprints: tuple[str, ...] = ()
    runtime_env: dict[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, str]:
        """Return what the job server keeps with the job."""
        known = {FINGERPRINT_METADATA: ",".join(self.fingerprints)} if self.fingerprints else {}
        return {KEY_METADATA: self.key, **known}


class JobServer(Protocol):
    """A cluster's job server. Every call may raise `JobServerError`."""

    @property
    def address(self) -> str:
        """Where it is, as a person would name it."""

    def jobs(self) -> list[Job]:
        """Return every job that was ever submitted there."""

    def job(self, submission_id: str) -> Job | None:
        """Return one job as it stands now, None if there is none of that id."""

    def submit(self, submission: Submission, submission_id: str) -> bool:
        """Submit under that id; False if the id is taken, and then nothing has been started."""

    def stop(self, submission_id: str) -> None:
        """Ask a job to end; it gets SIGTERM, and SIGKILL if that takes too long."""

    def log(self, submission_id: str) -> str:
        """Return the log so far."""

    def follow(self, submission_id: str) -> Iterator[str]:
        """Yield the log from its start in pieces, until the job has ended."""


@dataclass(frozen=True)
class Submitted:
    """The job to follow; `attached` if it ran already, submitted by someone else or before."""

    submission_id: str
    attached: bool


def submit_once(server: JobServer, submission: Submission) -> Submitted:
    """Submit a job unless it is pending or running already.

    Raises:
        JobServerError: the server refuses, or others took every attempt that we tried.
    """
    for _ in range(_RACES):
        attempts = attempts_of(submission.key, server.jobs())
        number, latest = max(attempts.items(), default=(0, None))
        if latest is not None and not latest.state.ended:
            return Submitted(latest.submission_id, attached=True)
        submission_id = f"eva-{submission.key[:KEY_LENGTH]}-{number + 1}"
        if server.submit(submission, submission_id):
            return Submitted(submission_id, attached=False)
    raise JobServerError(
        f"{_RACES} others submitted this job under our hands and all have ended (eva-{submission.key[:KEY_LENGTH]}-*); "
        "look at `eva-dist jobs`, and submit again"
    )


def attempts_of(key: str, jobs: Sequence[Job]) -> dict[int, Job]:
    """Return the attempts at a job by number."""
    pattern = re.compile(rf"eva-{key[:KEY_LENGTH]}-(\d+)")
    matches = ((pattern.fullmatch(job.submission_id), job) for job in jobs)
    return {int(match[1]): job for match, job in matches if match}


def lines(pieces: Iterator[str]) -> Iterator[str]:
    """Join pieces of a log and yield its lines, without their ends; the last one may lack its end."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest


def is_outcome(line: str) -> bool:
    """Tell whether a line of a log is a run's JSON line."""
    if not line.startswith("{"):
        return False
    try:
        return _OUTCOME <= json.loads(line).keys()
    except (ValueError, AttributeError):
        return False
