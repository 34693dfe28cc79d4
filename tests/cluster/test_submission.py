"""The same job runs once: attaching, races, attempts; and what is read from a log."""

import json

import pytest

from eva_dist.cluster.submission import Job, JobState, Submission, attempts_of, is_outcome, lines, submit_once
from eva_dist.errors import JobServerError
from tests.fake_job_server import FakeJobServer

KEY = "0123456789abcdef" * 4
WORK = Submission(KEY, "python jobs/precompute.py eva.r=4", ("f" * 64,), {"working_dir": "/clone"})
FIRST, SECOND = "eva-0123456789abcdef-1", "eva-0123456789abcdef-2"


@pytest.fixture
def server():
    return FakeJobServer()


def test_a_new_job_is_submitted_with_its_fingerprint(server):
    submitted = submit_once(server, WORK)
    assert (submitted.submission_id, submitted.attached) == (FIRST, False)
    assert server.submissions == {FIRST: WORK}
    assert server.known[FIRST].metadata == {"eva_dist.key": KEY, "eva_dist.fingerprint": "f" * 64}


@pytest.mark.parametrize("state", [JobState.pending, JobState.running])
def test_while_one_runs_the_next_follows_it(server, state):
    server.put(FIRST, state)
    submitted = submit_once(server, WORK)
    assert (submitted.submission_id, submitted.attached) == (FIRST, True)
    assert server.submissions == {}


@pytest.mark.parametrize("state", [JobState.succeeded, JobState.failed, JobState.stopped])
def test_after_one_has_ended_the_next_attempt_begins(server, state):
    server.put(FIRST, state)
    submitted = submit_once(server, WORK)
    assert (submitted.submission_id, submitted.attached) == (SECOND, False)


def test_attempts_are_counted_and_not_sorted_as_text(server):
    for number in (9, 10):
        server.put(f"eva-0123456789abcdef-{number}", JobState.failed)
    assert submit_once(server, WORK).submission_id.endswith("-11")


def test_another_key_is_another_job(server):
    server.put("eva-fedcba9876543210-1", JobState.running)
    server.put("raysubmit_abc", JobState.running)
    assert not submit_once(server, WORK).attached


def test_who_loses_a_race_follows_the_winner(server):
    """Both saw no job; the other one's submission arrives first."""
    server.before_submit = lambda submission_id: server.put(submission_id, JobState.pending)
    submitted = submit_once(server, WORK)
    assert (submitted.submission_id, submitted.attached) == (FIRST, True)
    assert server.submissions == {}


def test_a_winner_that_has_ended_by_then_makes_room_for_the_next_attempt(server):
    def other_one(submission_id):
        if submission_id == FIRST:
            server.put(FIRST, JobState.failed)

    server.before_submit = other_one
    submitted = submit_once(server, WORK)
    assert (submitted.submission_id, submitted.attached) == (SECOND, False)


def test_races_without_end_are_an_error(server):
    server.before_submit = lambda submission_id: server.put(submission_id, JobState.failed)
    with pytest.raises(JobServerError, match=r"10 others submitted this job .* \(eva-0123456789abcdef-\*\)"):
        submit_once(server, WORK)


def test_attempts_are_those_of_the_key_alone():
    names = ["eva-0123456789abcdef-3", "eva-0123456789abcdef-x", "eva-0123456789abcde-1", "x-eva-0123456789abcdef-1"]
    assert set(attempts_of(KEY, [Job(name, JobState.failed, "") for name in names])) == {3}


@pytest.mark.parametrize(
    ("state", "exit_code", "result"),
    [
        (JobState.succeeded, 0, 0),
        (JobState.succeeded, None, 0),
        (JobState.failed, 2, 2),
        (JobState.failed, -9, 137),
        (JobState.failed, None, 1),
        (JobState.stopped, None, 1),
    ],
)
def test_the_exit_code_to_pass_on(state, exit_code, result):
    assert Job("x", state, "", exit_code=exit_code).result == result


def test_lines_are_whole_however_a_log_arrives():
    assert list(lines(iter(["one\ntw", "o\n", "\nfour", "", " five"]))) == ["one", "two", "", "four five"]
    assert list(lines(iter([]))) == []


def test_a_run_s_json_line_is_known():
    outcome = {"url": "file:///s", "fingerprint": "f", "status": "done", "steps": 3}
    assert is_outcome(json.dumps(outcome))
    assert not is_outcome(json.dumps({"url": "file:///s"}))
    assert not any(is_outcome(text) for text in ("", "step 1/2 | {}", "{not json}", "[1]", "{}", f"x {outcome}"))
