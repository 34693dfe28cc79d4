"""Models held by several processes: the same inputs reach every layer, and each process has its shard alone."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    BertForMaskedLM,
    BertModel,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from eva_dist.calibration.lockstep import keep_in_step
from eva_dist.config import Dtype, ModelConfig, Task
from eva_dist.distributed.process_group import shard_mesh
from eva_dist.modeling.blocks import find_blocks
from eva_dist.modeling.forward import TokenForward, Trunk, entering, find_layout
from eva_dist.modeling.load import load_model
from eva_dist.modeling.packing import Layout
from eva_dist.modeling.shard import Sharding
from tests.distributed.gang_of_processes import run
from tests.modeling.tiny_models import bert_config, gpt2_config, held_bytes, llama_config

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")
_LIKE_LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(llama_config(num_hidden_layers=3)),
    "llama, tied": lambda: LlamaForCausalLM(llama_config(num_hidden_layers=3, tie_word_embeddings=True)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**_LIKE_LLAMA)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_LIKE_LLAMA, num_local_experts=3)),  # in two uneven shards
    "gpt2": lambda: GPT2LMHeadModel(gpt2_config()),
    "bert": lambda: BertModel(bert_config()),
}


@dataclass(frozen=True)
class Seen:
    """What one process saw of a model."""

    differences: dict[str, float]
    layouts: tuple[Layout, Layout]
    blocks: int
    entered: tuple[int, int]
    held: tuple[int, int]
    gathered: tuple[str, ...]
    dtypes: set[torch.dtype]
    head: bool


def minibatch(global_rank: int) -> dict[str, torch.Tensor]:
    """Three samples of a process's own, with padding; the second process has longer ones."""
    generator = torch.Generator().manual_seed(global_rank)
    lengths = torch.tensor([5, 9, 7]) + 6 * global_rank
    mask_BT = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    ids_BT = torch.randint(3, 64, mask_BT.shape, generator=generator)
    return {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT}


def linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]


def token_forward(model: nn.Module, layout: Layout = Layout.padded) -> TokenForward:
    return TokenForward(Trunk(model), CPU, use_label_mask=False, label_mask_value=-100, layout=layout)


def look(folders: dict[str, Path], dtype: Dtype, offload: bool, global_rank: int, world_size: int) -> dict[str, Seen]:
    mesh = shard_mesh(world_size, CPU, 20.0)
    return {name: _look(folder, dtype, Sharding(mesh, CPU, offload), global_rank) for name, folder in folders.items()}


def _look(folder: Path, dtype: Dtype, sharding: Sharding, global_rank: int) -> Seen:
    settings = ModelConfig(name_or_path=str(folder), dtype=dtype)
    whole = load_model(settings, Task.CAUSAL_LM, "model.", CPU)
    model = load_model(settings, Task.CAUSAL_LM, "model.", CPU, sharding)
    layers = [name for name in linear_layers(whole) if not name.startswith("pooler")]  # one row a sample
    layouts = tuple(find_layout(one, layers, token_forward(one), minibatch(0), row_tokens=64) for one in (whole, model))
    differences = {}
    for layout in {Layout.padded, layouts[0]}:
        expected, found = (
            entering(one, layers, token_forward(one, layout), minibatch(global_rank)) for one in (whole, model)
        )
        assert expected.keys() == found.keys() == set(layers)
        differences |= {f"{n} {layout}": float((x - found[n]).abs().max()) for n, x in expected.items()}
    lockstep = keep_in_step(token_forward(model, layouts[0]), layers, sharding.mesh)
    assert lockstep.blocks is not None and not lockstep.forward.may_cut
    entered: list[int] = []
    blocks = model.get_submodule(lockstep.blocks.name)
    handles = [block.register_forward_pre_hook(lambda *_: entered.append(1)) for block in blocks]
    lockstep.idle()
    all_of_them = len(entered)
    with lockstep.through([name for name in layers if f"{lockstep.blocks.name}.0." in name]):
        assert lockstep.forwards(1 + global_rank) == sharding.shard_size
        lockstep.idle()
    for handle in handles:
        handle.remove()
    return Seen(
        differences=differences,
        layouts=layouts,
        blocks=len(lockstep.blocks),
        entered=(all_of_them, len(entered) - all_of_them),
        held=(held_bytes(model), held_bytes(whole)),
        gathered=tuple(name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)),
        dtypes={parameter.dtype for parameter in model.parameters()},
        head=any("lm_head" in name for name, _ in model.named_modules()),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        make().save_pretrained(root / name)
    return {name: root / name for name in MODELS}


@pytest.mark.parametrize(("dtype", "offload"), [(Dtype.float32, False), (Dtype.bfloat16, True)])
def test_every_layer_receives_what_it_does_in_the_whole_model(folders, tmp_path, dtype, offload):
    members = run(2, partial(look, folders, dtype, offload), tmp_path)
    for name in MODELS:
        for seen in (member[name] for member in members):
            assert set(seen.differences.values()) == {0.0}, name
            assert seen.layouts[0] is seen.layouts[1]
            assert seen.entered == (seen.blocks, 1)  # a tap in the first block: the others do not run
            assert seen.dtypes == {getattr(torch, dtype.value)}
            assert seen.held[0] <= (0.65 if name == "mixtral" else 0.51) * seen.held[1]  # two experts, and one
            assert seen.gathered == ()
            assert not seen.head
        assert sum(member[name].held[0] for member in members) >= members[0][name].held[1]


def fails(model: nn.Module, layers: list[str]) -> bool:
    """Have one forward fail within a block, and another between two."""
    for module in (model.get_submodule(layers[3]), model.layers[1]):
        handle = module.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            entering(model, layers, token_forward(model), minibatch(0))
        handle.remove()
    return True


def break_and_go_on(folder: Path, global_rank: int, world_size: int) -> float:
    settings = ModelConfig(name_or_path=str(folder))
    whole = load_model(settings, Task.CAUSAL_LM, "model.", CPU)
    model = load_model(settings, Task.CAUSAL_LM, "model.", CPU, Sharding(shard_mesh(world_size, CPU, 20.0), CPU))
    layers = linear_layers(whole)
    assert fails(model, layers)
    expected, found = (entering(one, layers, token_forward(one), minibatch(global_rank)) for one in (whole, model))
    # a model that counts its blocks cannot be cut; the one that follows finds that out, and goes on whole
    handle = model.register_forward_pre_hook(lambda module, _: None if len(module.layers) == 3 else 1 / 0)
    collect = lambda names: entering(model, names, token_forward(model), minibatch(0))  # noqa: E731
    assert find_blocks(model, layers, collect) is None
    handle.remove()
    again = entering(model, layers, token_forward(model), minibatch(global_rank))
    return max(float((x - other[name]).abs().max()) for other in (found, again) for name, x in expected.items())


def test_a_forward_that_fails_alike_everywhere_does_no_harm(folders, tmp_path):
    """Layouts, and forwards with fewer blocks, are tried: a model that refuses them must work afterwards."""
    assert run(2, partial(break_and_go_on, folders["llama"]), tmp_path) == [0.0, 0.0]


def load_without_a_head_of_its_own(folder: Path, global_rank: int, world_size: int) -> tuple[int, set[str]]:
    sharding = Sharding(shard_mesh(world_size, CPU, 20.0), CPU)
    model = load_model(ModelConfig(name_or_path=str(folder)), Task.FEATURE_EXTRACTION, "", CPU, sharding)
    found = entering(model, linear_layers(model)[:6], token_forward(model), minibatch(global_rank))
    return held_bytes(model), set(found)


@pytest.fixture
def masked_lm(tmp_path):
    torch.manual_seed(0)
    BertForMaskedLM(bert_config()).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_weights_that_the_checkpoint_lacks_are_sharded_too(masked_lm, tmp_path):
    """The pooler of a BERT that was trained without one."""
    (first, names), (second, _) = run(2, partial(load_without_a_head_of_its_own, masked_lm), tmp_path)
    assert len(names) == 6 and abs(first - second) < 0.1 * first


def whole_with_head(folder: Path, global_rank: int, world_size: int) -> float:
    settings = replace(ModelConfig(name_or_path=str(folder)))
    sharding = Sharding(shard_mesh(world_size, CPU, 20.0), CPU)
    whole, model = (load_model(settings, Task.CAUSAL_LM, "", CPU, how) for how in (None, sharding))
    layers = ["lm_head", "model.layers.0.self_attn.q_proj"]
    expected, found = (entering(one, layers, token_forward(one), minibatch(global_rank)) for one in (whole, model))
    return max(float((x - found[name]).abs().max()) for name, x in expected.items())


@pytest.mark.parametrize("name", ["llama", "llama, tied"])
def test_a_target_in_the_head_makes_the_whole_model_run(folders, tmp_path, name):
    assert run(2, partial(whole_with_head, folders[name]), tmp_path) == [0.0, 0.0]
