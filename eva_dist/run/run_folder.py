"""What a run writes down beside its settings and log."""

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

from eva_dist.calibration.controller import PointState

_log = logging.getLogger(__name__)


class RunFolder:
    """Writes `progress.jsonl`, one line a step, and `result.json` into a run's folder, beside its settings and log.

    A line holds `time` (Unix seconds), `step` (steps done),
    `layers_converged`, `layers_total`, `groups_active`, `tokens`, `elapsed` (seconds of all steps), `seconds` by
    phase and `sent_bytes`, each summed over the steps so far. A step that is done again after a failure
    has a second line.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._refused = False

    def add_step(self, state: PointState) -> None:
        """Add the line of a step; a disk that takes no line costs the line, not the run."""
        line = {
            "time": round(time.time(), 3),
            "step": state.steps,
            "layers_converged": state.layers_converged,
            "layers_total": len(state.plan.layers),
            "groups_active": len(state.active),
            "tokens": state.tokens,
            "elapsed": round(state.elapsed, 4),
            "seconds": {phase: round(seconds, 4) for phase, seconds in state.seconds.items()},
            "sent_bytes": state.sent_bytes,
        }
        self._write_line("progress.jsonl", "a", line)

    def finish(self, outcome: Any) -> None:
        """Write what the run printed as its last line."""
        self._write_line("result.json", "w", dataclasses.asdict(outcome))

    def _write_line(self, name: str, mode: str, line: Any) -> None:
        try:
            with (self._folder / name).open(mode, encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            if not self._refused:
                _log.warning("%s cannot be written (%s); the run goes on without", self._folder / name, error)
            self._refused = True
