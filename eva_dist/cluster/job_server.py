"""A cluster's job server through Ray's SDK; errors say what a person can set."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from eva_dist.cluster.submission import Job, JobState, Submission
from eva_dist.errors import ConfigError, JobServerError

_T = TypeVar("_T")

_RECONNECT_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Pauses before a log that broke off is asked for again; we give up when the server is silent for all of them."""

_TALKATIVE = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that speak of each ignore file and each closed socket; the latter two set a level of their own."""


def connect(address: str | None) -> "RayJobServer":
    """Return the job server at `address`: its URL, or host:port. None asks the environment, then this machine.

    Raises:
        JobServerError: nobody answers there, or the token is missing or wrong.
    """
    if address is not None and "://" not in address and address != "auto":
        address = f"http://{address}"
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _our_address(address):
        return RayJobServer(_explain_errors(address, lambda: JobSubmissionClient(address)))


class RayJobServer:
    """`eva_dist.cluster.submission.JobServer` on Ray's REST API."""

    def __init__(self, client: JobSubmissionClient) -> None:
        self._client = client

    @property
    def address(self) -> str:
        """Where it is, as a person would name it."""
        return str(self._client.get_address())

    def jobs(self) -> list[Job]:
        """Return every job that was ever submitted there."""
        found = self._call_server(self._client.list_jobs)
        return [_to_job(details) for details in found if details.submission_id is not None]

    def job(self, submission_id: str) -> Job | None:
        """Return one job as it stands now, None if there is none of that id."""
        # Not by get_job_info: there a missing job is a RuntimeError like any other.
        return next((job for job in self.jobs() if job.submission_id == submission_id), None)

    def submit(self, submission: Submission, submission_id: str) -> bool:
        """Submit under that id; False if the id is taken, and then nothing has been started."""

        def send() -> bool:
            try:
                self._client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission_id,
                    runtime_env=submission.runtime_env,
                    metadata=submission.metadata,
                )
            except RuntimeError as error:  # the server's answer as text: a 400 or 500 with its traceback
                if f"{submission_id} already exists" in str(error):
                    return False
                raise
            return True

        return self._call_server(send)

    def stop(self, submission_id: str) -> None:
        """Ask a job to end; it gets SIGTERM, and SIGKILL if that takes too long."""
        self._call_server(lambda: self._client.stop_job(submission_id))

    def log(self, submission_id: str) -> str:
        """Return the log so far."""
        return self._call_server(lambda: self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str) -> Iterator[str]:
        """Yield the log from its start in pieces, until the job has ended; a broken connection is made again."""
        shown, failures = 0, 0
        while True:
            position = 0
            with suppress(RuntimeError, OSError, aiohttp.ClientError):  # broken off: asked below what became of the job
                for piece in _log_pieces(lambda: self._client.tail_job_logs(submission_id)):
                    new = piece[max(0, shown - position) :]
                    position += len(piece)
                    shown = max(shown, position)
                    if new:
                        yield new
            try:
                job = self.job(submission_id)
                if job is not None and job.state.ended:
                    yield self.log(submission_id)[shown:]  # what came after the connection broke, most often nothing
                    return
                failures = 0
            except JobServerError as error:
                if failures == len(_RECONNECT_S):
                    raise JobServerError(
                        f"lost {submission_id}, which may still run: {error}; `eva-dist logs {submission_id} --follow` "
                        "shows it again"
                    ) from error
            time.sleep(_RECONNECT_S[failures])
            failures += 1

    def _call_server(self, function: Callable[[], _T]) -> _T:
        return _explain_errors(self.address, function)


def _log_pieces(tail: Callable[[], AsyncIterator[str]]) -> Iterator[str]:
    """Yield what an asynchronous iterator yields; an interrupt ends its task before it goes up."""
    with asyncio.Runner() as runner:
        iterator = tail()

        async def following() -> str | None:
            return await anext(iterator, None)

        while (piece := runner.run(following())) is not None:
            yield piece


@contextmanager
def _our_address(address: str | None) -> Iterator[None]:
    """Let a given address win: Ray's client prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to its argument."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    if address is not None:
        os.environ[name] = address
    try:
        yield
    finally:
        if address is not None:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _explain_errors(address: str | None, function: Callable[[], _T]) -> _T:
    """Return the function's value; say an error of Ray's in our words, with what to set."""
    where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        return function()
    except AuthenticationError as error:
        raise JobServerError(
            f"{where} asks for a token ({_first_line(error)}); set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the "
            "cluster's token or RAY_AUTH_TOKEN_PATH to a file that holds it"
        ) from error
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise JobServerError(
            f"no job server answers at {where} ({_first_line(error)}); give --address http://HEAD:8265, or set "
            "RAY_API_SERVER_ADDRESS; `ray start --head` starts one"
        ) from error
    except RuntimeError as error:
        raise JobServerError(f"{where} refused: {error}") from error
    except (TypeError, ValueError) as error:  # Ray looks at the runtime environment before it sends it
        raise ConfigError(
            f"--runtime-env or --env does not fit Ray: {error}; see its page on runtime environments"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _to_job(details: JobDetails) -> Job:
    return Job(
        submission_id=str(details.submission_id),
        state=JobState(details.status.value),
        entrypoint=details.entrypoint,
        metadata=dict(details.metadata or {}),
        started=_to_seconds(details.start_time),
        ended=_to_seconds(details.end_time),
        exit_code=details.driver_exit_code,
        message=details.message,
    )


def _to_seconds(milliseconds: Any) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
