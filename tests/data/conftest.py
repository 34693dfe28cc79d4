"""A tiny real tokenizer (byte-level BPE, offsets, BOS, no pad token, a chat template) and a private datasets cache."""

import json
from pathlib import Path

import pytest

CORPUS = [
    "the cat sat on the mat and the dog ran to the tree",
    "user says what is the answer; assistant says the answer is four",
    "a quick brown fox jumps over the lazy dog",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def private_datasets_cache(tmp_path_factory, monkeypatch):
    """Keep what datasets caches out of the user's cache, and other tests' rows out of this one's."""
    import datasets

    cache = tmp_path_factory.mktemp("cache")
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, cache / name)


@pytest.fixture(scope="session")
def _trained():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]),
        ]
    )
    return tokenizer.to_str()


@pytest.fixture
def tokenizer(_trained):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained), bos_token="<s>")
    fast.chat_template = CHAT_TEMPLATE
    assert fast.pad_token_id is None
    return fast


@pytest.fixture
def write_jsonl(tmp_path):
    def write(rows: list[dict], name: str = "rows.jsonl") -> str:
        path: Path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write
