"""A Hydra callback that remembers what Hydra told it."""

from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf


class Recorder(Callback):
    """Put it into `hydra.callbacks`; `told` holds (event, job number), `ended` the JobReturns. Clear both before."""

    told: list[tuple[str, Any]] = []
    ended: list[JobReturn] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.told.append(("multirun_start", None))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.told.append(("multirun_end", None))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.told.append(("job_start", OmegaConf.select(config, "hydra.job.num")))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        self.told.append(("job_end", OmegaConf.select(config, "hydra.job.num")))
        self.ended.append(job_return)
