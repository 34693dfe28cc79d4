"""Write checkpoints beside the steps: workers set their states aside, a thread of the driver collects and writes."""

import logging
import threading
from collections.abc import Mapping
from types import TracebackType

from safetensors import SafetensorError
from torch import Tensor

from eva_dist.calibration.pass_state import PassState
from eva_dist.cluster.checkpoint import CheckpointFolder
from eva_dist.cluster.gang import Gang
from eva_dist.cluster.workers import CallError

_log = logging.getLogger(__name__)


def kept_after(steps: int) -> str:
    """Return what is not lost when a run ends and its last checkpoint is of so many steps, in words."""
    return f"checkpoint after step {steps}; the same command goes on from there"


class Saver:
    """Writes a checkpoint every `every` steps (0: never). One that is due while another is written comes after it.

    A disk that is full costs the checkpoint, not the run: it is said, and the older one stays. Open it
    before the gang: when it closes, the gang is gone and nothing that is still under way can wait for it.
    """

    def __init__(self, folder: CheckpointFolder | None, every: int) -> None:
        self._folder, self._every = folder, every
        self._thread: threading.Thread | None = None
        self._saved = 0
        self._due = every

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._join_thread()

    def begin_at(self, steps: int) -> None:
        """Count from here: a pass begins, or goes on from a checkpoint of so many steps."""
        self._saved = steps
        self._due = steps + self._every

    def save_if_due(self, gang: Gang, state: PassState) -> None:
        """Begin to write a checkpoint if it is time; called between steps."""
        if self._folder is None or self._every == 0 or state.steps < self._due or self._is_writing():
            return
        self._due = state.steps + self._every
        self._begin_writing(gang, state)

    def save_now(self, gang: Gang, state: PassState) -> str:
        """Write a checkpoint and return what is kept, in words."""
        self._join_thread()
        if self._folder is None or self._every == 0:
            return "nothing is kept (cluster.checkpoint_every=0)"
        if self._saved < state.steps:
            self._begin_writing(gang, state)
            self._join_thread()
        return kept_after(self._saved) if self._saved else "no checkpoint could be written"

    def _begin_writing(self, gang: Gang, state: PassState) -> None:
        marked = gang.call("mark", state.steps)
        holders = {group: rank for rank, groups in enumerate(marked) for group in groups}
        self._thread = threading.Thread(target=self._write_checkpoint, args=(gang, holders, state), name="checkpoint")
        self._thread.start()

    def _write_checkpoint(self, gang: Gang, holders: Mapping[int, int], state: PassState) -> None:
        def fetch(group: int) -> Mapping[str, Tensor]:
            asked = gang.workers.ask(holders[group], "fetch", state.steps, group)
            found: Mapping[str, Tensor] = gang.workers.answer(asked)
            return found

        assert self._folder is not None
        try:
            self._folder.write(state, fetch)
            self._saved = state.steps
        except (OSError, SafetensorError, CallError) as error:
            if isinstance(error, CallError) and error.is_lost:  # the gang is gone, and the steps say why
                _log.info("the checkpoint after step %d was given up: %s", state.steps, str(error).partition("\n")[0])
                return
            _log.warning(
                "the checkpoint after step %d could not be written (%s); the run goes on, and would go on from step %d",
                state.steps,
                str(error).strip().rpartition("\n")[2],
                self._saved,
            )
        finally:
            for global_rank in range(len(gang.workers)):
                gang.workers.ask(global_rank, "forget", state.steps)

    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _join_thread(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
