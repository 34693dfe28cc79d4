"""Data of a few distinct rows: whoever asks for more components is told, by each solver."""

import logging

import pytest
import torch

from eva_dist.errors import NotConvergedError

from .conftest import build, eva, lora, token_minibatches

TARGETS = ["q_proj", "o_proj", "down_proj"]


def four_rows(count: int = 12):
    """Samples of one token each, of four in all: centred, their inputs have rank 3."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([5, 17, 29, 41])
    chosen = [tokens[torch.randint(0, 4, (24, 1), generator=generator)] for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in chosen]


@pytest.mark.parametrize("solver", ["subspace", "incremental", "covariance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_beyond_the_data_are_named(caplog, solver, dtype):
    options = {"solver": solver, "max_steps": 12, "on_max_steps": "accept"}
    with caplog.at_level(logging.WARNING, logger="eva_dist"):
        eva(build("llama").to(dtype), four_rows(), lora(TARGETS, r=8, rho=1.0), **options)
    assert "6 of 6 layers have a larger rank than their inputs have distinct directions" in caplog.text
    assert "layers.0.self_attn.q_proj (rank 8, 3 directions)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="eva_dist"):
        eva(build("llama").to(dtype), token_minibatches(), lora(TARGETS, r=8, rho=1.0), **options)
        eva(build("llama").to(dtype), four_rows(), lora(TARGETS, r=3, rho=1.0), **options)
    assert "distinct directions" not in caplog.text


def test_the_hint_comes_before_the_refusal_of_what_cannot_converge(caplog):
    with caplog.at_level(logging.WARNING, logger="eva_dist"), pytest.raises(NotConvergedError):
        eva(build("llama"), four_rows(), lora(TARGETS, r=8, rho=1.0), max_steps=12)
    assert "use more varied data, or a smaller eva.r" in caplog.text
