"""Say what a run will take, from the model's config.json alone: no weights, no data, no accelerator.

    python jobs/plan.py model.name_or_path=/models/llama-70b cluster.num_workers=8 cluster.shard_size=8 \
        accelerator=a100-80gb
    python jobs/plan.py model.name_or_path=... data.path=... plan.measure=true   # and check it on this machine

A table on standard output; with `plan.json=true` one JSON object. Exit codes as of every job.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))  # `python jobs/plan.py` from a clone

from eva_dist.config import Config, at_least  # noqa: E402
from eva_dist.errors import ConfigError  # noqa: E402
from eva_dist.modeling.load import read_architecture  # noqa: E402
from eva_dist.modeling.positions import check_length  # noqa: E402
from eva_dist.preflight.accelerator import Accelerator  # noqa: E402
from eva_dist.preflight.estimate import Preflight, estimate  # noqa: E402
from eva_dist.preflight.report import Check, checks_to_text, to_text  # noqa: E402
from jobs.calibrate import calibrate  # noqa: E402
from jobs.hydra_main import before_actors, exit_code, only_json_on_stdout, point, register_schema  # noqa: E402
from jobs.schema import freeze, unfrozen  # noqa: E402

_NO_DATA = "(none)"
"""Stands for `data.path`, which a plan does not need."""


@dataclass
class PlanSettings:
    """How to plan.

    Attributes:
        json: print one JSON object instead of tables.
        measure: run some steps on this machine and hold the estimate against them.
        steps: of each measurement.
        workers: of the gang whose traffic is measured; 1 for none.
        threads: of every process; null for all cores.
    """

    json: bool = False
    measure: bool = False
    steps: int = 12
    workers: int = 2
    threads: int | None = None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from at_least("plan.steps", self.steps, 4, "the first two are not like the others")
        yield from at_least("plan.workers", self.workers, 1, "use 1 to measure no traffic")
        yield from at_least("plan.threads", self.threads, 1, "use null for all cores")


register_schema("plan_schema", accelerator=unfrozen(Accelerator), plan=PlanSettings)


@dataclass(frozen=True)
class Answer:
    """What `plan.json=true` prints: the estimate and, if asked for, what was measured."""

    preflight: Preflight
    checks: tuple[Check, ...] = ()


@hydra.main(version_base="1.3", config_path=str(_ROOT / "conf"), config_name="plan")
@point
def main(settings: DictConfig) -> None:
    """Plan, print and perhaps measure."""
    text = ""
    with only_json_on_stdout() as emit:
        with before_actors():
            config, accelerator, wanted = read(OmegaConf.to_object(settings))
            architecture = read_architecture(config.model)
            check_length(architecture, config.data.max_length)
            found = estimate(config, architecture, calibrate(accelerator, architecture, config, wanted.threads))
        checks: tuple[Check, ...] = ()
        if wanted.measure:
            from jobs.plan_check import check, this_device

            here = accelerator if accelerator.device == this_device() else Accelerator(efficiency=1.0)
            complete = calibrate(here, architecture, config, wanted.threads)
            checks = check(config, architecture, complete, wanted)
        if wanted.json:
            emit(Answer(found, checks))
        else:
            text = to_text(found)
            if checks:
                text += "\n" + checks_to_text("Predicted and measured on this machine", checks)
    print(text, end="")


def read(filled: Any) -> tuple[Config, Accelerator, PlanSettings]:
    """Return the validated settings.

    Raises:
        ConfigError: one line for each setting that is out of range.
    """
    wanted: PlanSettings = filled.plan
    accelerator = Accelerator(**vars(filled.accelerator))
    problems = [*wanted.problems(), *accelerator.problems()]
    if wanted.measure and not filled.data.path:
        problems.append("data.path='' must name the text to measure with when plan.measure=true; or leave that out")
    filled.data.path = filled.data.path or _NO_DATA
    try:
        config = freeze(filled)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config, accelerator, wanted


if __name__ == "__main__":
    sys.exit(exit_code(main))
