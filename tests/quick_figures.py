"""Figures that take no time to draw: the files are there, and they are PNG."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eva_dist.artifact.card.figures import CONVERGENCE_FIGURE, RANKS_FIGURE, SPECTRA_FIGURE, write_plots

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg==")


def write_one_pixel(folder: Path, layers: Any, state: Any, *_: Any) -> None:
    """Stand in for `write_plots`: a figure where it writes one, and none where there is no history."""
    for name in (RANKS_FIGURE, SPECTRA_FIGURE, *([CONVERGENCE_FIGURE] if state.history else [])):
        (folder / name).write_bytes(PIXEL)


@contextmanager
def figures_by(write: Any) -> Iterator[None]:
    """Let artifacts get their figures from that function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eva_dist.artifact.write.write_plots", write)
        yield


def drawn_figures() -> Any:
    """Let artifacts be what a run publishes, figures included."""
    return figures_by(write_plots)
