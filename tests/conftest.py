"""Real weights and real text, prepared once; threads bounded, for tests share two cores."""

import gc
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from eva_dist.config import Config
from eva_dist.run.prepare import Prepared, prepare
from jobs.prepare_demo import cache_folder, docstrings, minilm, smollm2
from tests.quick_figures import figures_by, write_one_pixel
from tests.tiny_run import tiny_config, write_tiny_model, write_words

# A shell without job control starts what it puts in the background with SIGINT ignored, and so would we start others.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


LONGEST_FIRST = (
    *("tests/cluster/test_observing.py", "tests/cluster/", "tests/jobs/", "tests/real/", "tests/modeling/"),
    *("tests/calibration/", "tests/run/", "tests/preflight/", "tests/gateway/"),
)
"""Files and folders in the order in which they are begun, all others after them; the end is left to short ones."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files so that two processes that take one after the other end together; a file's tests keep their order."""

    def place(item: pytest.Item) -> int:
        return next((at for at, start in enumerate(LONGEST_FIRST) if item.nodeid.startswith(start)), len(LONGEST_FIRST))

    items.sort(key=place)
    gc.freeze()  # modules and tests stay to the end; every search for garbage would go through all of them


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


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine, for as long as the tests need it; its workers begin with their imports done."""
    import ray

    from tests.warm.processes import warm_workers

    warm_workers()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(params=["processes", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def gangs(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where gangs live: in processes of ours, or in Ray, which is slow; all that follows must be the same."""
    from tests.gang_processes import without_ray
    from tests.several_processes import SeveralProcesses

    if request.param == "ray":
        request.getfixturevalue("ray_here")
        yield request.param
        return
    with without_ray(SeveralProcesses):
        yield request.param


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("words") / "words.jsonl")


@pytest.fixture
def configure(tiny_model: Path, words_file: Path, tmp_path: Path) -> Callable[..., Config]:
    """Return the settings of a tiny run, with groups changed by keyword."""
    return lambda **changes: tiny_config(tiny_model, words_file, tmp_path / "store", **changes)


@pytest.fixture
def prepared(configure: Callable[..., Config]) -> Callable[..., Prepared]:
    return lambda **changes: prepare(configure(**changes))


@pytest.fixture(scope="session", autouse=True)
def quick_figures() -> Iterator[None]:
    """Artifacts of this process get figures of one pixel: to draw them takes longer than all else of a tiny run.

    What looks at the pictures is built inside `drawn_figures()`; jobs in processes of their own draw theirs as ever.
    """
    with figures_by(write_one_pixel):
        yield


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Artifacts without any figure, for tests that count or compare files."""
    with figures_by(lambda *given: None):
        yield
