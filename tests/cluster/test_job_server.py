"""Ray's job server as we see it: errors in our words, a log that is whole though its connection breaks."""

import os
import socket
from types import SimpleNamespace

import pytest
import requests
from ray.exceptions import AuthenticationError

import eva_dist.cluster.job_server
from eva_dist.cluster.job_server import RayJobServer, connect
from eva_dist.cluster.submission import JobState, Submission
from eva_dist.errors import JobServerError

JOB = "eva-0123456789abcdef-1"
WORK = Submission("0123456789abcdef" * 4, "python jobs/precompute.py")


class Client:
    """What `RayJobServer` uses of `JobSubmissionClient`; a job runs as long as there are tails of its log."""

    def __init__(self, *tails, status="SUCCEEDED"):
        self.tails = list(tails)
        self.status = status
        self.error = None
        self.text = ""

    def get_address(self):
        return "http://head:8265"

    def list_jobs(self):
        if self.error:
            raise self.error
        status = "RUNNING" if self.tails else self.status
        driver = SimpleNamespace(submission_id=None)  # a driver that nobody submitted
        return [driver, details(status)]

    def get_job_logs(self, job):
        return self.text

    def submit_job(self, **request):
        if self.error:
            raise self.error
        self.request = request

    async def tail_job_logs(self, job):
        for piece in self.tails.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece


def details(status):
    return SimpleNamespace(
        **{"submission_id": JOB, "status": SimpleNamespace(value=status), "entrypoint": "python", "metadata": None},
        **{"start_time": 1_500, "end_time": None, "driver_exit_code": None, "message": None},
    )


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(eva_dist.cluster.job_server, "_RECONNECT_S", (0.0, 0.0))


def test_jobs_are_those_that_were_submitted():
    (job,) = RayJobServer(Client()).jobs()
    assert (job.submission_id, job.state, job.started, job.ended) == (JOB, JobState.succeeded, 1.5, None)
    assert RayJobServer(Client()).job("other") is None


def test_a_log_in_pieces():
    client = Client(["a\n", "b\n"])
    client.text = "a\nb\n"
    assert "".join(RayJobServer(client).follow(JOB)) == "a\nb\n"


@pytest.mark.parametrize("broken", [RuntimeError("code 1006"), ConnectionResetError(), requests.ConnectionError()])
def test_a_log_that_breaks_off_goes_on_where_it_was(broken):
    client = Client(["a\nb", broken], ["a\n", "b\nc\n", broken], ["a\nb\nc\n", "d\n"])
    client.text = "a\nb\nc\nd\nlast\n"
    assert "".join(RayJobServer(client).follow(JOB)) == client.text


def test_a_server_that_stays_silent_is_an_error_that_says_the_job_may_run():
    client = Client([], [], [])
    client.error = ConnectionError("refused")
    with pytest.raises(JobServerError, match=rf"lost {JOB}, which may still run: no job server answers .* --follow"):
        list(RayJobServer(client).follow(JOB))
    assert client.tails == []  # as often as there were pauses, and once more


def test_an_interrupt_goes_up_and_ends_the_tail():
    client = Client(["a\n", "b\n"])
    following = RayJobServer(client).follow(JOB)
    assert next(following) == "a\n"
    with pytest.raises(KeyboardInterrupt):
        following.throw(KeyboardInterrupt)


def test_what_is_submitted():
    client = Client()
    assert RayJobServer(client).submit(WORK, JOB)
    assert client.request == {
        **{"entrypoint": WORK.entrypoint, "submission_id": JOB, "runtime_env": {}},
        "metadata": {"eva_dist.key": WORK.key},
    }


def test_an_id_that_is_taken_is_no_error_and_another_refusal_is():
    client = Client()
    client.error = RuntimeError(
        f"Request failed with status code 500: ... Job with submission_id {JOB} already exists."
    )
    assert not RayJobServer(client).submit(WORK, JOB)
    client.error = RuntimeError("Request failed with status code 500: no space left")
    with pytest.raises(JobServerError, match=r"http://head:8265 refused: .* no space left"):
        RayJobServer(client).submit(WORK, JOB)


def test_a_token_that_is_asked_for_is_explained():
    client = Client()
    client.error = AuthenticationError("Authentication required: Unauthorized\n\nmore")
    with pytest.raises(JobServerError, match=r"asks for a token .*set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to"):
        RayJobServer(client).jobs()


def test_nobody_there(monkeypatch):
    """The given address is asked, with and without its scheme, whatever the environment says; which stays as it was."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        for given in (address, f"http://{address}"):
            with pytest.raises(JobServerError, match=rf"no job server answers at http://{address} .* give --address"):
                connect(given)
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:9"
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:9"
