"""A tiny model and real words on disk, and one local Ray for all tests of this folder."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eva_dist.actors.worker import Assignment
from eva_dist.config import ArtifactConfig, ClusterConfig, Config, DataConfig, EvaConfig, ModelConfig, StoreConfig
from eva_dist.precompute import Prepared, prepare

VOCABULARY = ["<pad>", "<s>", "</s>", *[f"w{i}" for i in range(61)]]


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine, for as long as the tests need it."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two blocks, 32 wide, whose embeddings have a decaying spectrum, with a tokenizer of words."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight *= 50 * 0.8 ** torch.arange(32)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 samples of 5 to 40 words."""
    generator = torch.Generator().manual_seed(1)
    path = tmp_path_factory.mktemp("words") / "words.jsonl"
    with path.open("w") as file:
        for _ in range(240):
            length = int(torch.randint(5, 40, (), generator=generator))
            ids = torch.randint(3, len(VOCABULARY), (length,), generator=generator)
            file.write(json.dumps({"text": " ".join(VOCABULARY[i] for i in ids)}) + "\n")
    return path


@pytest.fixture
def configure(tiny_model: Path, words_file: Path, tmp_path: Path) -> Callable[..., Config]:
    """Return the settings of a tiny run; groups are changed by keyword, e.g. `eva={"tau": 0.9}`."""

    def make(**changes: dict[str, Any]) -> Config:
        config = Config(
            model=ModelConfig(name_or_path=str(tiny_model)),
            data=DataConfig(path=str(words_file), max_length=64, step_size=6, batch_size=2),
            eva=EvaConfig(r=4, rho=2.0, tau=0.9, target_modules="all-linear"),
            cluster=ClusterConfig(num_workers=2, timeout_s=60.0, threads_per_worker=1),
            store=StoreConfig(url=str(tmp_path / "store")),
            artifact=ArtifactConfig(repo_id="tests/tiny"),
        )
        groups = {group: replace(getattr(config, group), **settings) for group, settings in changes.items()}
        return replace(config, **groups)

    return make


@pytest.fixture
def prepared(configure: Callable[..., Config]) -> Callable[..., Prepared]:
    return lambda **changes: prepare(configure(**changes))


def assignment_of(run: Prepared, **changes: Any) -> Assignment:
    assignment = Assignment(run.config, run.task, run.prefix, run.targets.layers, run.data["digest"], threads=1)
    return replace(assignment, **changes)


def worker_pids() -> list[int]:
    """Return the processes that are gang workers now, from /proc."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::GangWorker") and _is_ours(int(entry.name)):
                pids.append(int(entry.name))
    return sorted(pids)


def _is_ours(pid: int) -> bool:
    """Tell whether a process descends from this one, so that other runs on the machine do not count."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False
