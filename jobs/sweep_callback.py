"""Hydra callback: when a sweep has ended, compare its points (`hydra.callbacks` of conf/precompute.yaml)."""

import logging
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from jobs.hydra_main import after_failure, only_json_on_stdout

_log = logging.getLogger(__name__)


class SweepSummary(Callback):
    """Writes sweep.json, sweep.parquet and index.html into the sweep's folder, and a table to standard error.

    Hydra ends a sweep in which a point failed by that point's exception, and then calls no `on_multirun_end`;
    such a sweep has its summary too, by `after_failure`.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note where the sweep lies."""
        self._folder = Path(str(config.hydra.sweep.dir)).absolute()
        after_failure(self._write_summary)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the summary."""
        self._write_summary()

    def _write_summary(self) -> None:
        """Write and print, if any point has left an answer; what fails here fails no sweep."""
        if not any(True for name in ("result.json", "error.json") for _ in self._folder.glob(f"*/{name}")):
            return
        try:
            with only_json_on_stdout():
                from eva_dist.report.sweep import write_sweep

                print(write_sweep(self._folder).table(), file=sys.stderr)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            _log.warning("no summary of the sweep in %s (%s); each point's result.json is there", self._folder, reason)
