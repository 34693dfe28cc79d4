"""What can be sharded and in which units, seen on models without weights."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_models import bert_config, gpt2_config, llama_config, make
from torch import nn
from transformers import (
    BertModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralModel,
    NomicBertConfig,
    NomicBertModel,
)

from eva_dist.config import ModelConfig
from eva_dist.errors import ConfigError
from eva_dist.modeling.blocks import Blocks, block_lists, find_blocks
from eva_dist.modeling.load import check_shardable, read_architecture
from eva_dist.modeling.shard import refuse_unshardable, units
from eva_dist.run.prepare import prepare


def empty(make_model):
    with torch.device("meta"):
        return make_model()


def test_units_are_the_blocks_and_what_holds_weights_outside_them():
    assert set(units(empty(lambda: LlamaModel(llama_config())))) == {"layers.*", "embed_tokens"}
    assert set(units(empty(lambda: BertModel(bert_config())))) == {
        "encoder.layer.*",
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
        "pooler.dense",
    }


def test_numbers_in_names_are_left_open_as_transformers_wants_it():
    def nested():
        model = LlamaModel(llama_config())
        model.towers = nn.ModuleList([nn.Module(), nn.Module()])
        for tower in model.towers:
            tower.blocks, tower.inwards = nn.ModuleList([model.layers[0]]), nn.Linear(2, 2)
        return model

    assert {"layers.*", "towers.*.blocks.*", "towers.*.inwards"} <= set(units(empty(nested)))


def test_a_head_that_is_tied_to_the_embedding_is_no_unit_of_its_own():
    assert set(units(empty(lambda: LlamaForCausalLM(llama_config())))) == {
        "model.layers.*",
        "model.embed_tokens",
        "lm_head",
    }
    tied = empty(lambda: LlamaForCausalLM(llama_config(tie_word_embeddings=True)))
    assert set(units(tied)) == {"model.layers.*"}
    assert set(units(empty(lambda: GPT2LMHeadModel(gpt2_config())))) == {"transformer.h.*", "transformer.wpe"}


MIXTRAL = MixtralConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_local_experts=3)


@pytest.mark.parametrize(
    "make_model", [lambda: LlamaModel(llama_config()), lambda: BertModel(bert_config()), lambda: MixtralModel(MIXTRAL)]
)
def test_what_can_be_sharded_is_not_refused(make_model):
    """And would be, were its weights stored so that no slice of them can be read."""
    model = empty(make_model)
    refuse_unshardable(model, 3, "")
    with pytest.raises(ConfigError, match=r"cluster\.shard_size=3 must be 1 .*: it is a GGUF file"):
        refuse_unshardable(model, 3, "it is a GGUF file")


def shared_blocks():
    model = LlamaModel(llama_config())
    model.layers[1].mlp = model.layers[0].mlp
    return model


def no_blocks():
    class Block(nn.Module):
        """A block that neither the model nor its class makes known."""

    model = LlamaModel(llama_config())
    model.layers = nn.ModuleList([Block(), Block()])
    return model


def quantised():
    model = LlamaModel(llama_config())
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


@pytest.mark.parametrize(
    ("make_model", "why"),
    [
        (no_blocks, "LlamaModel declares no repeated blocks"),
        (shared_blocks, "its blocks share weights"),
        (quantised, "its weights are quantised"),
        (lambda: MixtralModel(MIXTRAL), "3 experts a layer"),
        (lambda: NomicBertModel(NomicBertConfig(num_hidden_layers=1)), r"makes its self_attn\.q_proj, .*\(Chunk\)"),
        (lambda: nn.Linear(3, 3), "no transformers model"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_name_and_with_the_remedy(make_model, why):
    with pytest.raises(ConfigError, match=rf"cluster\.shard_size=4 must be 1 .*{why}.*; use cluster\.shard_size=1"):
        refuse_unshardable(empty(make_model), 4, "")


def test_the_settings_alone_refuse_what_cannot_be_sharded(tmp_path):
    """From config.json, without weights; the model that is meant is the trunk that will be loaded."""
    make("llama").save_pretrained(tmp_path)
    shutil.move(tmp_path / "model.safetensors", tmp_path / "elsewhere")
    settings = ModelConfig(name_or_path=str(tmp_path))
    architecture = read_architecture(settings)
    check_shardable(settings, architecture, "model.", 2)
    in_one_file = replace(settings, gguf_file="model.gguf")
    check_shardable(in_one_file, architecture, "model.", 1)
    with pytest.raises(ConfigError, match=r"for this model \(llama\): model\.gguf cannot be read in slices; use"):
        check_shardable(in_one_file, architecture, "model.", 2)


def test_a_run_is_refused_before_anything_starts(configure, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    alone = {"model": {"name_or_path": str(folder)}, "cluster": {"num_workers": 2}}
    prepare(configure(**alone))
    with pytest.raises(ConfigError, match=r"shard_size=2 must be 1 .*\(llama\): its weights are quantised"):
        prepare(configure(**alone | {"cluster": {"num_workers": 2, "shard_size": 2}}))


class Stack(nn.Module):
    """Three blocks behind an embedding, and a list that is none of blocks."""

    _no_split_modules = ("Linear",)

    def __init__(self, reversing: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList([nn.LayerNorm(4)])
        self.inner = nn.Module()
        self.inner.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        self.reversing = reversing

    def forward(self, x):
        for block in reversed(self.inner.blocks) if self.reversing else self.inner.blocks:
            x = torch.tanh(block(x))
        return x


def collect_with(model):
    def collect(names):
        found = {}
        handles = [
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: found.update({name: args[0]})
            )
            for name in names
        ]
        model(torch.ones(2, 4))
        for handle in handles:
            handle.remove()
        return found

    return collect


def test_forwards_end_after_the_last_block_that_is_needed():
    model = Stack()
    assert block_lists(model) == ["inner.blocks"]
    names = [f"inner.blocks.{i}" for i in range(4)]
    blocks = find_blocks(model, names, collect_with(model))
    assert blocks is not None and len(blocks) == 4
    assert [blocks.needed(names[:n]) for n in range(5)] == [0, 1, 2, 3, 4]
    assert blocks.needed(["norms.0"]) == blocks.needed([names[0], "norms.0"]) == 4  # who knows when it is entered
    expected = collect_with(model)(names)
    with blocks.first(2):
        found = collect_with(model)(names[:2])
        assert len(model.inner.blocks) == 2
        assert all(torch.equal(found[name], expected[name]) for name in names[:2])
    assert len(model.inner.blocks) == 4 and collect_with(model)(names).keys() == set(names)


def test_a_model_whose_first_blocks_need_the_others_runs_whole():
    model = Stack(reversing=True)
    assert find_blocks(model, ["inner.blocks.0"], collect_with(model)) is None
    assert len(model.inner.blocks) == 4


def test_blocks_come_back_whatever_happens():
    model = Stack()
    with pytest.raises(ZeroDivisionError), Blocks(model, "inner.blocks").first(1):
        1 / 0  # noqa: B018
    assert len(model.inner.blocks) == 4
