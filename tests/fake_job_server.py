"""A job server in memory, at the seam of `eva_dist.cluster.submission.JobServer`."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from eva_dist.cluster.submission import Job, JobState, Submission


class FakeJobServer:
    """Jobs run when they are followed: `run` says how a job ends and what it logs, `before_submit` lets others in."""

    address = "http://fake:8265"

    def __init__(self) -> None:
        self.known: dict[str, Job] = {}
        self.logs: dict[str, list[str]] = {}
        self.submissions: dict[str, Submission] = {}
        self.before_submit: Callable[[str], None] = lambda submission_id: None
        self.run: Callable[[Job], tuple[JobState, int | None, list[str]]] = lambda job: (JobState.succeeded, 0, [])

    def put(self, submission_id: str, state: JobState, **facts: object) -> Job:
        """Let somebody else have submitted a job."""
        job = Job(submission_id, state, "python jobs/precompute.py", **facts)  # type: ignore[arg-type]
        self.known[submission_id] = job
        return job

    def jobs(self) -> list[Job]:
        return list(self.known.values())

    def job(self, submission_id: str) -> Job | None:
        return self.known.get(submission_id)

    def submit(self, submission: Submission, submission_id: str) -> bool:
        self.before_submit(submission_id)
        if submission_id in self.known:
            return False
        self.submissions[submission_id] = submission
        self.put(submission_id, JobState.pending, metadata=submission.metadata, started=1.0)
        return True

    def stop(self, submission_id: str) -> None:
        self.known[submission_id] = replace(self.known[submission_id], state=JobState.stopped, ended=3.0)

    def log(self, submission_id: str) -> str:
        return "".join(self.logs.get(submission_id, []))

    def follow(self, submission_id: str) -> Iterator[str]:
        job = self.known[submission_id]
        if not job.state.ended:
            state, exit_code, log = self.run(job)
            self.logs[submission_id] = log
            self.known[submission_id] = replace(job, state=state, exit_code=exit_code, ended=2.0)
        yield from self.logs.get(submission_id, [])
