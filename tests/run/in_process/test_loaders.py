"""Loaders and targets that PEFT's function refuses, or makes something else of."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import BatchEncoding

from eva_dist.errors import LayerError, NotConvergedError

from .conftest import assert_same, build, eva, lora, ranks, token_minibatches


class Restartable:
    """No `len`; every `iter` is a new generator."""

    def __init__(self, minibatches):
        self.minibatches = minibatches
        self.started = 0

    def __iter__(self):
        self.started += 1
        yield from self.minibatches


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def as_stream(minibatches):
    rows = [{key: values[i] for key, values in m.items()} for m in minibatches for i in range(len(m["input_ids"]))]
    return DataLoader(Stream(rows), batch_size=len(minibatches[0]["input_ids"]))


LOADERS = {
    "no len": Restartable,
    "IterableDataset": as_stream,
    "BatchEncoding": lambda minibatches: [BatchEncoding(dict(minibatch)) for minibatch in minibatches],
    "one-shot iterator": lambda minibatches: iter(minibatches * 50),
    "one-shot generator": lambda minibatches: (minibatch for _ in range(50) for minibatch in minibatches),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_same_result_as_from_a_list(kind):
    data = token_minibatches(padding=True)
    assert_same(eva(build("llama"), LOADERS[kind](data), lora()), eva(build("llama"), data, lora()), least=1 - 1e-12)


def test_a_loader_that_is_used_up_starts_again():
    loader = Restartable(token_minibatches(count=2))
    eva(build("llama"), loader, lora(tau=1.0), max_steps=7, on_max_steps="accept")
    assert loader.started == 4


def test_each_minibatch_is_one_step_and_the_first_is_not_lost():
    """The minibatches that were looked at to find the input groups come again."""
    data, seen = token_minibatches(count=4), []

    def noting(model_input, peft_config):
        seen.append(next(i for i, m in enumerate(data) if torch.equal(m["input_ids"], model_input["input_ids"])))
        return model_input["attention_mask"].nonzero()

    options = {"max_steps": 6, "on_max_steps": "accept"}
    eva(build("llama"), iter(data), lora(tau=1.0), prepare_model_inputs_fn=noting, **options)
    assert seen == [0, 0, 1, 2, 3]
    seen.clear()
    eva(build("llama"), data, lora(tau=1.0), prepare_model_inputs_fn=noting, **options)
    assert seen == [0, 0, 1, 2, 3, 0, 1]


def test_one_shot_iterator_that_ends_early_names_the_layers():
    with pytest.raises(NotConvergedError, match="the data ran out") as error:
        eva(build("llama"), iter(token_minibatches(count=2)), lora(tau=1.0))
    for part in ("8 of 8 layers", "layers.0.self_attn.q_proj", "lowest cosine 0."):
        assert part in str(error.value)


def test_one_shot_iterator_that_ends_early_is_taken_on_request():
    data = token_minibatches(count=2)
    early = eva(build("llama"), iter(data), lora(tau=1.0), on_max_steps="accept")
    assert_same(early, eva(build("llama"), data, lora(tau=1.0), max_steps=2, on_max_steps="accept"), least=1 - 1e-12)
    assert sum(ranks(early).values()) == 8 * 4


def test_minibatches_are_left_as_they_were():
    data = token_minibatches(labels=True, padding=True)
    before = [{key: rows.clone() for key, rows in minibatch.items()} for minibatch in data]
    eva(build("llama"), data, lora())
    for minibatch, copy in zip(data, before, strict=True):
        assert list(minibatch) == list(copy)
        assert all(torch.equal(minibatch[key], copy[key]) for key in copy)


def test_all_linear_takes_every_linear_layer_but_the_head():
    names = set(eva(build("llama"), token_minibatches(), lora("all-linear")))
    linear = {name for name, m in build("llama").named_modules() if isinstance(m, torch.nn.Linear)}
    assert names == linear - {"lm_head"}
    assert len(names) == 14


def test_no_targets_means_the_architecture_s_own():
    config = lora()
    config.target_modules = None
    names = eva(build("llama"), token_minibatches(), config)
    assert list(names) == [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(2) for kind in "qv"]
    assert config.target_modules is None


def test_no_targets_and_an_unknown_architecture_is_refused():
    config = lora()
    config.target_modules = None
    with pytest.raises(LayerError, match=r"target_modules=None.*Mlp.*left, right, out"):
        eva(build("mlp"), token_minibatches(), config)
