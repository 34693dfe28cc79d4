"""The points of a sweep under `hydra/launcher=shared_pass`, answered one by one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from eva_dist.cluster.stop_request import StopRequest

if TYPE_CHECKING:
    from eva_dist.run.outcome import Outcome
    from jobs.shared_batch import Batch


class SharedPoints:
    """Answers the points of a batch, if the launcher has opened one.

    Args:
        stop: when made, the whole batch ends; points that were published before keep their answers.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._batch: Batch | None = None

    @contextmanager
    def open(self, settings: Mapping[int, DictConfig], folders: Mapping[int, Path]) -> Iterator[None]:
        """For `shares`: while open, points of these numbers are answered together."""
        from jobs.shared_batch import Batch  # a job of one point has no use for it, and better ways to import all this

        self._batch = Batch(settings, folders, self._stop)
        try:
            yield
        finally:
            self._batch = None

    def answer(self) -> "Outcome | None":
        """Return the outcome of the point whose turn it is; None if it is not part of a batch.

        Raises:
            Exception: whatever ended that point.
        """
        if self._batch is None:
            return None
        answer = self._batch.answers[HydraConfig.get().job.num]
        if isinstance(answer, Exception):
            raise answer
        return answer
