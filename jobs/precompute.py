"""Compute EVA's initialisation on a gang of workers and publish it.

    python jobs/precompute.py model.name_or_path=... data.path=... eva.r=16 eva.rho=2.0 cluster.num_workers=2
    python jobs/precompute.py -m hydra/launcher=shared_pass eva.rho=1,1.5,2 eva.tau=0.9,0.99 ...

`--help` lists every setting. The last line on standard output is one JSON object; a sweep prints one for
each point that ends well, in the order of the points.
"""

import dataclasses
import gc
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))  # `python jobs/precompute.py` from a clone

from eva_dist.cluster.one_process import worker_ahead  # noqa: E402
from eva_dist.cluster.stop_request import StopRequest, on_sigterm  # noqa: E402
from jobs.hydra_main import before_actors, exit_code, only_json_on_stdout, point, register_schema, to_config  # noqa: E402
from jobs.turns import leaves_errors, output_folder, shares  # noqa: E402

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


register_schema()
_stop = StopRequest()
"""One a process: a sweep that is asked to end begins no other point."""
_shared = SharedPoints(_stop)


@hydra.main(version_base="1.3", config_path=str(_ROOT / "conf"), config_name="precompute")
@point
@leaves_errors
@shares(_shared.open)
def main(settings: DictConfig) -> dict[str, Any]:
    """Answer one point; a Hydra sweep calls this once a point. Returns what is printed."""
    with only_json_on_stdout() as emit:
        outcome = _shared.answer() or run_alone(settings)
        emit(outcome)
    return dataclasses.asdict(outcome)


def run_alone(settings: DictConfig) -> "Outcome":
    """Compute a point by itself; a worker that lives beside us does its imports while we do ours."""
    started = time.perf_counter()
    with before_actors():
        config = to_config(settings)
    with worker_ahead(config.cluster):
        with _stop.interruptible(), before_actors():
            gc.disable()  # imports leave no garbage, and looking for it takes a tenth of their time
            from eva_dist.calibration.progress import Progress
            from eva_dist.run.observer import RecordingObserver
            from eva_dist.run.prepare import prepare
            from eva_dist.run.run_folder import RunFolder
            from eva_dist.run.sweep import precompute

            gc.enable()
            run = prepare(config)
        with closing(Progress()) as progress:
            return precompute(run, started, RecordingObserver(progress, [RunFolder(output_folder())]), _stop)


if __name__ == "__main__":
    with on_sigterm(_stop):
        sys.exit(exit_code(main))
