"""A run that takes a second, as words of a command line."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def tiny(tiny_model: Path, words_file: Path) -> Callable[..., list[str]]:
    """Return the settings of a run that takes a second, and others as given."""

    def settings(*more: str) -> list[str]:
        return [
            f"model.name_or_path={tiny_model}",
            f"data.path={words_file}",
            "data.max_length=64",
            "data.step_size=6",
            "eva.r=4",
            "eva.tau=0.8",
            "eva.target_modules=all-linear",
            *more,
        ]

    return settings
