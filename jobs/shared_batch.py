"""The points of a sweep that share their forwards, computed together.

At the first point's turn all are prepared and those that are good are computed; every turn, the first one too, picks
up the answer of its own point.
"""

import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from omegaconf import DictConfig

from eva_dist.calibration.progress import Progress
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.errors import PreemptedError
from eva_dist.run.observer import Answer, RecordingObserver
from eva_dist.run.outcome import Outcome
from eva_dist.run.prepare import Prepared, ReadCache, prepare
from eva_dist.run.run_folder import RunFolder
from eva_dist.run.sweep import compute_points, same_names
from jobs.hydra_main import BadSettings, before_actors, to_config
from jobs.turns import output_folder


class Batch:
    """Points by job number. `started` is the moment when the launcher told of them."""

    def __init__(self, settings: Mapping[int, DictConfig], folders: Mapping[int, Path], stop: StopRequest) -> None:
        self._settings = settings
        self._folders = folders
        self._stop = stop
        self._started = time.perf_counter()

    @functools.cached_property
    def answers(self) -> dict[int, Outcome | Exception]:
        """How each point ended; computed when first asked for. What stops the whole pass ends those yet without."""
        found: dict[int, Outcome | Exception] = {}
        try:
            self._compute_points(self._prepare_points(found), found)
        except Exception as error:
            found |= dict.fromkeys(self._settings.keys() - found.keys(), error)
        return found

    def _prepare_points(self, found: dict[int, Outcome | Exception]) -> dict[int, Prepared]:
        """Return the points that can run; note why the others cannot."""
        runs, known = {}, ReadCache()
        with self._stop.interruptible():
            for number, settings in self._settings.items():
                try:
                    with before_actors(), _logged_in([self._folders[number]]):
                        runs[number] = prepare(to_config(settings), known)
                except PreemptedError:
                    raise
                except Exception as error:
                    found[number] = error
        numbers = list(runs)
        for at, refused in same_names(list(runs.values())).items():
            found[numbers[at]] = BadSettings(str(refused))
            del runs[numbers[at]]
        return runs

    def _compute_points(self, runs: Mapping[int, Prepared], found: dict[int, Outcome | Exception]) -> None:
        if not runs:
            return
        folders = {number: self._folders[number] for number in runs}
        with _logged_in([*folders.values()]), closing(Progress()) as progress:
            observer = _BatchObserver(progress, folders, found)
            compute_points(list(runs.values()), self._started, observer, self._stop)


class _BatchObserver(RecordingObserver):
    """Keeps each answer under the point's job number, too: those that are there stay when the batch is ended."""

    def __init__(self, progress: Progress, folders: Mapping[int, Path], found: dict[int, Answer]) -> None:
        super().__init__(progress, [RunFolder(folder) for folder in folders.values()])
        self._numbers, self._found = list(folders), found

    def on_answer(self, point: int, answer: Answer) -> None:
        """Keep the answer, and write it down."""
        self._found[self._numbers[point]] = answer
        super().on_answer(point, answer)


@contextmanager
def _logged_in(folders: Sequence[Path]) -> Iterator[None]:
    """While open, what is logged goes into these points' log files, not only into that of the point in turn."""
    root, here = logging.getLogger(), output_folder()
    added = []
    for handler in list(root.handlers):
        if not isinstance(handler, logging.FileHandler) or Path(handler.baseFilename).parent != here:
            continue
        for folder in folders:
            if folder != here:
                other = logging.FileHandler(folder / Path(handler.baseFilename).name, handler.mode)
                other.setFormatter(handler.formatter)
                other.setLevel(handler.level)
                root.addHandler(other)
                added.append(other)
    try:
        yield
    finally:
        for other in added:
            root.removeHandler(other)
            other.close()
