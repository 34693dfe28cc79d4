"""Say what `jobs/precompute.py` would compute, before it is submitted: `eva-dist submit` asks this.

    python jobs/fingerprint.py OVERRIDES

Settings are checked as the job itself would check them, as far as this machine sees the model and the data. Prints
one JSON object a point: `key` (the same for the same job), `fingerprint` of the artifact or null, and `note`, why
it is null. Exit codes: 0 done, 2 bad settings, 1 anything else.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from eva_dist.run.identity import identify  # noqa: E402
from jobs.hydra_main import before_actors, exit_code, only_json_on_stdout, point, register_schema, to_config  # noqa: E402
from jobs.turns import apart, shares  # noqa: E402

register_schema()


@hydra.main(version_base="1.3", config_path=str(_ROOT / "conf"), config_name="precompute")
@point
@shares(apart)
def main(settings: DictConfig) -> None:
    """Identify one point; a Hydra sweep calls this once a point."""
    with only_json_on_stdout() as emit, before_actors():
        emit(identify(to_config(settings), _ROOT))


if __name__ == "__main__":
    sys.exit(exit_code(main))
