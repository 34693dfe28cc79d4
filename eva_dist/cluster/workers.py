"""What a driver asks of workers, and of the place where they live: a Ray cluster, or one process beside the driver."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from eva_dist.cluster.placement import Request, Resources
from eva_dist.cluster.stop_request import StopRequest

if TYPE_CHECKING:
    from eva_dist.calibration.controller import PointState
    from eva_dist.calibration.worker import Assignment

THREADS = {"status": "status", "fetch": "io", "forget": "io"}
"""Methods of a worker that run beside the others, and in which of its further threads."""

BEGIN = "begin_worker"
"""What a process is asked first: to make its worker, by a function and what it takes."""


class CallError(Exception):
    """A worker gave no answer.

    Attributes:
        cause: what its method raised, where that could be sent.
        is_lost: the worker is gone, or cannot be reached.
    """

    def __init__(self, report: str, cause: BaseException | None = None, is_lost: bool = False) -> None:
        super().__init__(report)
        self.cause, self.is_lost = cause, is_lost


class Workers(Protocol):
    """The workers of a gang, by `global_rank`; calls of one of them are answered in their order."""

    def __len__(self) -> int:
        """Return how many there are."""

    def ask(self, global_rank: int, method: str, *arguments: Any) -> Any:
        """Begin a call; return what stands for its answer."""

    def wait(self, asked: Sequence[Any], timeout_s: float) -> list[Any]:
        """Return those calls that have an answer, as soon as there is one, at the latest after `timeout_s`."""

    def answer(self, asked: Any) -> Any:
        """Wait for the answer of a call, and return it.

        Raises:
            CallError: there is none.
        """


class Place(Protocol):
    """Where workers live. `settles_s` are the seconds that it may take, once reached, to know all that it has."""

    settles_s: float

    def nodes(self) -> list[Resources]:
        """Return what each node has in all."""

    def start(self, assignment: "Assignment", request: Request, stop: StopRequest) -> AbstractContextManager[Workers]:
        """Start the workers, all or none; they are gone when the context closes, however it closes."""

    def exclusive_run(self, fingerprint: str, stop: StopRequest) -> AbstractContextManager[None]:
        """Acquire the lock of this place for a fingerprint, waiting while another driver holds it."""

    def metrics(self, fingerprint: str, repo_id: str) -> Callable[["PointState"], None]:
        """Return what shows the state of a point to those who watch this place."""
