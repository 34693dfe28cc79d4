"""What a point of a sweep is, wherever it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eva_dist.artifact.layer_table import DescribedLayer
from eva_dist.run.outcome import Outcome

FAILED, UNFINISHED, NOT_BEGUN, MISSING, DAMAGED = "failed", "unfinished", "not_begun", "missing", "damaged"
"""Statuses beside those that a run prints (`done`, `not_converged`, `cached`): the last two speak of the artifact."""


@dataclass(frozen=True)
class Problem:
    """Why a point has no figures: an error's type and message."""

    type: str
    message: str


@dataclass(frozen=True)
class StoredArtifact:
    """What a report takes from an artifact: its folder, its manifest, and its layers in model order.

    `url` (`file://`) is the revision's while that points to it, else the folder's own.
    """

    folder: Path
    url: str
    manifest: Mapping[str, Any]
    layers: tuple[DescribedLayer, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by layer."""
        return {layer.name: layer.rank for layer in self.layers}


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        number: its place in the sweep.
        overrides: as typed, e.g. `eva.rho=1.5`.
        settings: dotted key to plain value, of everything that is known of the point's settings.
        complete: whether `settings` holds every key; else a key that is not there says nothing.
        status: the run's own, or one of those above.
        result: what the run printed, None if it did not.
        problem: why there is no artifact to compare; None exactly if `artifact` is there or the point never began.
        artifact: None unless it was read whole.
    """

    number: int
    overrides: tuple[str, ...]
    settings: Mapping[str, Any]
    status: str
    result: Outcome | None = None
    problem: Problem | None = None
    artifact: StoredArtifact | None = None
    complete: bool = True
