"""Models of a few thousand parameters, made from their configs."""

import warnings

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)


def held_bytes(model: nn.Module) -> int:
    """Return how many bytes of parameters this process holds between forwards: its shard, or the whole model."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in model.parameters())


def llama_config(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**(settings | changes))


def gpt2_config() -> GPT2Config:
    return GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )


MODELS = {
    "llama": (lambda: LlamaForCausalLM(llama_config()), "CAUSAL_LM"),
    "gpt2": (lambda: GPT2LMHeadModel(gpt2_config()), "CAUSAL_LM"),
    "bert": (lambda: BertModel(bert_config()), "FEATURE_EXTRACTION"),
    "bert for sequences": (lambda: BertForSequenceClassification(bert_config()), "SEQ_CLS"),
    "bert for tokens": (lambda: BertForTokenClassification(bert_config()), "TOKEN_CLS"),
    "bert for questions": (lambda: BertForQuestionAnswering(bert_config()), "QUESTION_ANS"),
    "bert for masks": (lambda: BertForMaskedLM(bert_config()), None),
    "llama trunk": (lambda: LlamaModel(llama_config()), "FEATURE_EXTRACTION"),
}


def make(name: str, device: str = "cpu", seed: int = 0) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        with torch.device(device):
            return MODELS[name][0]().eval()
