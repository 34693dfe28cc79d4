"""Who watches a run or a sweep: its passes, its points, and what each of them came to."""

from collections.abc import Sequence

from eva_dist.calibration.controller import PointState
from eva_dist.calibration.pass_state import PassState
from eva_dist.calibration.progress import Progress
from eva_dist.run.outcome import Outcome
from eva_dist.run.run_folder import RunFolder

Answer = Outcome | Exception
"""What a point came to: an artifact, or the error that ended it."""


class SweepObserver:
    """Told how a sweep goes, in the driver's main thread; each method does nothing until a subclass says otherwise.

    Points are numbered as they were given to `compute_points`; a run of its own is point 0.
    """

    def on_pass_step(self, state: PassState) -> None:
        """Take note of a pass, which several points may share, after each of its steps."""

    def on_point_step(self, point: int, state: PointState) -> None:
        """Take note of a point after each of its own steps."""

    def on_answer(self, point: int, answer: Answer) -> None:
        """Take a point's answer, as soon as it is published or has failed."""


class RecordingObserver(SweepObserver):
    """Shows the progress of each pass, and writes each point's steps and outcome into its folder."""

    def __init__(self, progress: Progress, folders: Sequence[RunFolder]) -> None:
        self._progress, self._folders = progress, folders

    def on_pass_step(self, state: PassState) -> None:
        """Show the progress line."""
        self._progress(state)

    def on_point_step(self, point: int, state: PointState) -> None:
        """Add a line to the point's `progress.jsonl`."""
        self._folders[point].add_step(state)

    def on_answer(self, point: int, answer: Answer) -> None:
        """Write the point's `result.json`."""
        if isinstance(answer, Outcome):
            self._folders[point].finish(answer)
