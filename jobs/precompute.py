"""Compute EVA's initialisation on a Ray gang and publish it.

    python jobs/precompute.py model.name_or_path=... data.path=... eva.r=16 eva.rho=2.0 cluster.num_workers=2

`--help` lists every setting. The last line on standard output is one JSON object.
"""

import sys
import time
from contextlib import closing
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))  # `python jobs/precompute.py` from a clone

from eva_dist.precompute import precompute  # noqa: E402
from eva_dist.prepare import prepare  # noqa: E402
from eva_dist.progress import Progress, RunFolder  # noqa: E402
from eva_dist.stopping import StopRequest, on_sigterm  # noqa: E402
from jobs.hydra_main import before_actors, exit_code, only_json_on_stdout, point, register_schema, to_config  # noqa: E402

register_schema()
_stop = StopRequest()
"""One a process: a sweep that is asked to end begins no other point."""


@hydra.main(version_base="1.3", config_path=str(_ROOT / "conf"), config_name="precompute")
@point
def main(settings: DictConfig) -> None:
    """Run one point; a Hydra sweep calls this once a point."""
    started = time.perf_counter()
    with only_json_on_stdout() as emit:
        with _stop.nothing_to_keep(), before_actors():
            run = prepare(to_config(settings))
        record = RunFolder(Path(HydraConfig.get().runtime.output_dir))
        with closing(Progress()) as progress:
            outcome = precompute(run, record, started, _stop, progress)
        emit(outcome)
        record.finish(outcome)


if __name__ == "__main__":
    with on_sigterm(_stop):
        sys.exit(exit_code(main))
