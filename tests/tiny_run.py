"""A tiny model, a tokenizer of words and some text on disk: what a whole run needs, in a second."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eva_dist.config import ArtifactConfig, ClusterConfig, Config, DataConfig, EvaConfig, ModelConfig, StoreConfig

VOCABULARY = ["<pad>", "<s>", "</s>", *[f"w{i}" for i in range(61)]]


def write_tiny_model(folder: Path) -> Path:
    """Write a Llama of two blocks, 32 wide, whose embeddings have a decaying spectrum, and its tokenizer."""
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


def write_words(path: Path, samples: int = 240) -> Path:
    """Write samples of 5 to 40 words, one a line."""
    generator = torch.Generator().manual_seed(1)
    with path.open("w") as file:
        for _ in range(samples):
            length = int(torch.randint(5, 40, (), generator=generator))
            ids = torch.randint(3, len(VOCABULARY), (length,), generator=generator)
            file.write(json.dumps({"text": " ".join(VOCABULARY[i] for i in ids)}) + "\n")
    return path


def tiny_config(model_folder: Path, words: Path, store_folder: Path, **changes: dict[str, Any]) -> Config:
    """Return the settings of a tiny run; groups are changed by keyword, e.g. `eva={"tau": 0.9}`."""
    config = Config(
        model=ModelConfig(name_or_path=str(model_folder)),
        data=DataConfig(path=str(words), max_length=64, step_size=6, batch_size=2),
        eva=EvaConfig(r=4, rho=2.0, tau=0.9, target_modules="all-linear"),
        cluster=ClusterConfig(num_workers=2, timeout_s=60.0, threads_per_worker=1, max_failures=0),
        store=StoreConfig(url=str(store_folder)),
        artifact=ArtifactConfig(repo_id="tests/tiny"),
    )
    groups = {group: replace(getattr(config, group), **settings) for group, settings in changes.items()}
    return replace(config, **groups)
