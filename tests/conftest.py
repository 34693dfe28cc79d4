"""Real weights and real text, prepared once; threads bounded, for tests share two cores."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.prepare_demo import cache_folder, docstrings, minilm, smollm2

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as safetensors."""
    return smollm2(cache_folder())


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The MiniLM encoder."""
    return minilm()


@pytest.fixture(scope="session")
def docstrings_file() -> Path:
    """Docstrings of the standard library, one a line."""
    return docstrings(cache_folder())


@pytest.fixture(scope="session")
def texts(docstrings_file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in docstrings_file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def make_minibatches() -> Callable[..., list[dict[str, Any]]]:
    """Tokenise texts into padded minibatches."""

    def make(
        folder: Path, texts: Sequence[str], count: int, batch_size: int = 4, max_length: int = 128
    ) -> list[dict[str, Any]]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        return [
            dict(
                tokenizer(
                    list(texts[i * batch_size : (i + 1) * batch_size]),
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=max_length,
                )
            )
            for i in range(count)
        ]

    return make
