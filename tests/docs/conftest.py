"""A tiny model and its artifact, in the places that the pages name."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.own_run import own_run
from tests.tiny_run import tiny_config, write_tiny_model, write_words


@dataclass(frozen=True)
class Tiny:
    """Where the model and its artifact lie."""

    model: Path
    artifact: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    folder = tmp_path_factory.mktemp("docs")
    model = write_tiny_model(folder / "model")
    words = write_words(folder / "words.jsonl")
    config = tiny_config(model, words, folder / "store", cluster={"num_workers": 1})
    published = own_run(config)
    assert published.folder is not None  # a folder store's
    return Tiny(model, published.folder)
