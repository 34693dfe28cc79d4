"""Tiny models from configs, minibatches for them, and the questions that every test here asks.

Random weights have flat spectra, in which no component ever settles; so the embeddings
are scaled feature by feature, and every layer's input gets a spectrum that decays.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from eva_dist import get_eva_state_dict
from jobs.prepare_demo import cache_folder, docstrings, minilm

VOCAB, HIDDEN = 64, 32
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class Mlp(nn.Module):
    """No transformers model: `forward(x)`, two branches on one input, a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(HIDDEN, 24), nn.Linear(HIDDEN, 24)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.left(x)) * self.right(x))


def build(kind: str, **changes: Any) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    return _BUILDERS[kind](**changes)


def decayed(embedding: nn.Embedding, decay: float = 0.75) -> None:
    with torch.no_grad():
        embedding.weight.normal_().mul_(decay ** torch.arange(embedding.embedding_dim))


def token_minibatches(
    count: int = 6, batch: int = 8, length: int = 12, seed: int = 0, labels: bool = False, padding: bool = False
) -> list[dict[str, Tensor]]:
    """Plain dicts. `padding` cuts rows short from the right; `labels` masks a third of the tokens with -100."""
    generator = torch.Generator().manual_seed(seed)
    minibatches = []
    for _ in range(count):
        ids = torch.randint(3, VOCAB, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        if padding:
            lengths = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
            mask = (torch.arange(length) < lengths).long()
        minibatch = {"input_ids": ids * mask, "attention_mask": mask}
        if labels:
            hidden = torch.rand(batch, length, generator=generator) < 1 / 3
            minibatch["labels"] = torch.where(hidden | (mask == 0), -100, ids)
        minibatches.append(minibatch)
    return minibatches


def vectors(count: int = 6, rows: int = 64, features: int = HIDDEN, seed: int = 0) -> list[dict[str, Tensor]]:
    """Minibatches for `Mlp`: correlated rows whose spectrum decays."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(features, features, generator=generator)).Q
    scale = 0.75 ** torch.arange(features)
    return [{"x": torch.randn(rows, features, generator=generator) * scale @ turn} for _ in range(count)]


def lora(targets: Any = None, r: int = 4, rho: float = 2.0, tau: float = 0.99, **changes: Any) -> LoraConfig:
    eva_keys = {"whiten", "use_label_mask", "label_mask_value", "adjust_scaling_factors"}
    eva = EvaConfig(rho=rho, tau=tau, **{key: value for key, value in changes.items() if key in eva_keys})
    rest = {key: value for key, value in changes.items() if key not in eva_keys}
    targets = ATTENTION if targets is None else targets
    return LoraConfig(r=r, target_modules=targets, init_lora_weights="eva", eva_config=eva, **rest)


def wrapped(model: nn.Module, config: LoraConfig, **options: Any) -> PeftModel:
    """A `PeftModel`, without PEFT's advice on memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lora with eva initialization used with low_cpu_mem_usage=False")
        return get_peft_model(model, config, **options)


def eva(model: nn.Module, dataloader: Any, config: LoraConfig | None = None, **options: Any) -> dict[str, Tensor]:
    """The function under test, without its progress line."""
    return get_eva_state_dict(model, dataloader, config, **{"show_progress_bar": False, **options})


def eva_vectors(model: nn.Module, dataloader: Any, config: LoraConfig, **options: Any) -> dict[str, Tensor]:
    """The function under test on data that are no tokens: every row counts."""
    return eva(model, dataloader, config, prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, **options)


def ranks(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: rows.shape[0] for name, rows in state.items()}


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """|cos| of each component with its counterpart, over the components that both have."""
    both = min(len(a), len(b))
    return cosine_similarity(a[:both].double(), b[:both].double()).abs()


def assert_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], least: float = 0.9999) -> None:
    """Same layers, same ranks, same components, same lengths."""
    assert ranks(a) == ranks(b)
    assert sum(ranks(a).values()) > 0
    for name in a:
        assert (cosines(a[name], b[name]) >= least).all(), name
        torch.testing.assert_close(a[name].norm(dim=1), b[name].norm(dim=1), rtol=1e-3, atol=0)


def assert_no_hooks(model: nn.Module) -> None:
    hooked = [
        name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
    ]
    assert hooked == []


@contextmanager
def recorded_calls(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Collect the keyword arguments of each call of a module."""
    calls: list[dict[str, Any]] = []
    handle = module.register_forward_pre_hook(lambda _m, _args, kwargs: calls.append(kwargs), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture
def updates(monkeypatch) -> list[int]:
    """Which input group each SVD update served, in order."""
    from eva_dist.calibration.group_svds import Updates

    seen: list[int] = []
    run = Updates.run

    def counting(self, updates):
        seen.extend(update.group for update in updates)
        run(self, updates)

    monkeypatch.setattr(Updates, "run", counting)
    return seen


@pytest.fixture(scope="session")
def real_minibatches() -> list[dict[str, Tensor]]:
    """Docstrings for MiniLM, 16 at a time, padded; as labels, the second half of each text counts."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    with docstrings(cache_folder()).open() as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(480), lines, strict=False)]
    return [_tokenized(tokenizer, texts[start : start + 16]) for start in range(0, len(texts), 16)]


@pytest.fixture
def real_model() -> nn.Module:
    """MiniLM's first two layers."""
    return AutoModel.from_pretrained(minilm(), num_hidden_layers=2)


def _tokenized(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    tokens = dict(tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt"))
    mask = tokens["attention_mask"]
    first_half = mask.cumsum(1) <= mask.sum(1, keepdim=True) // 2
    tokens["labels"] = torch.where(first_half | (mask == 0), -100, tokens["input_ids"])
    return tokens


def _llama(**changes: Any) -> nn.Module:
    config = LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **SPECIAL,
            **changes,
        }
    )
    model = LlamaForCausalLM(config)
    decayed(model.model.embed_tokens)
    return model


def _gpt2() -> nn.Module:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=HIDDEN, n_head=4, n_positions=32, vocab_size=VOCAB, **SPECIAL))
    decayed(model.transformer.wte)
    return model


def _bert() -> nn.Module:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCAB, max_position_embeddings=32, **sizes))
    decayed(model.bert.embeddings.word_embeddings)
    return model


def _vit() -> nn.Module:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_channels=1, **sizes))


def _t5() -> nn.Module:
    sizes = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCAB, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0, **sizes)
    )
    decayed(model.shared)
    return model


_BUILDERS = {"llama": _llama, "gpt2": _gpt2, "bert": _bert, "vit": _vit, "t5": _t5, "mlp": Mlp}
