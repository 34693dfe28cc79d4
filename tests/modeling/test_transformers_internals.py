"""Private symbols of torch and transformers: each is there, and does what we take for granted."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedModel, core_model_loading
from transformers import modeling_utils as transformers_modeling

from eva_dist.modeling import transformers_internals as internals


@pytest.fixture
def llama():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    return LlamaModel(LlamaConfig(vocab_size=11, num_key_value_heads=1, **shape))


def test_models_declare_their_blocks(llama):
    assert internals.declared_block_classes(llama) == {"LlamaDecoderLayer"}
    assert internals.declared_block_classes(nn.Linear(2, 2)) == set()


def test_a_model_says_how_it_attends_and_whether_that_can_be_replaced(llama):
    assert internals.uses_sdpa(llama)
    llama.set_attn_implementation("eager")
    assert not internals.uses_sdpa(llama)
    internals.warm_attention_check(BertModel)  # by class, without a model
    assert internals.uses_sdpa(BertModel(BertConfig(num_hidden_layers=1, hidden_size=12, intermediate_size=8)))


def test_accelerate_marks_modules_whose_weights_it_moves():
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    module = nn.Linear(2, 2)
    assert not internals.weights_are_moved_by_hooks(module)
    add_hook_to_module(module, ModelHook())
    assert internals.weights_are_moved_by_hooks(module)
    remove_hook_from_module(module)
    assert not internals.weights_are_moved_by_hooks(module)


def test_from_pretrained_asks_the_class_for_the_mesh():
    assert "prepare_distribute_model" in inspect.getsource(PreTrainedModel.from_pretrained)
    given = inspect.signature(PreTrainedModel.prepare_distribute_model).parameters
    assert list(given) == ["distributed_config", "device_map"]
    twin = internals.loader_on_mesh(LlamaModel, "mesh", torch.device("cpu"))
    assert twin.prepare_distribute_model("settings") == ("settings", torch.device("cpu"), "mesh")
    assert (twin.__name__, twin.__module__) == ("LlamaModel", LlamaModel.__module__)


def test_the_mesh_has_the_axes_that_transformers_asks_for():
    both = {"shard": "the axis of shards"}
    assert internals.ShardMesh(both).get_mesh(("dp_replicate", "fsdp")) is both
    assert internals.ShardMesh(both).get_mesh("fsdp") == "the axis of shards"


def test_where_a_shard_goes_is_decided_by_one_function_in_both_places():
    places = (core_model_loading, transformers_modeling)
    before = [place._dtensor_from_local_like for place in places]
    assert list(inspect.signature(before[0]).parameters)[:2] == ["local_tensor", "ref"]
    with internals.shards_stay_where_read():
        now = [place._dtensor_from_local_like for place in places]
        assert now[0] is now[1] and now[0] is not before[0]
    assert [place._dtensor_from_local_like for place in places] == before
    assert "_spec" in DTensor.__annotations__


def test_a_copied_tree_shares_tensors_and_keeps_its_own_registers(llama):
    twin = internals.copy_module_tree(llama)
    assert type(twin) is LlamaModel and twin.layers[0].mlp.up_proj.weight is llama.layers[0].mlp.up_proj.weight
    twin.layers[0].mlp.up_proj = nn.Linear(8, 8)
    twin.layers[0].self_attn.q_proj.weight = None
    assert llama.layers[0].mlp.up_proj is not twin.layers[0].mlp.up_proj
    assert llama.layers[0].self_attn.q_proj.weight is not None


def test_versions_operators_and_products_are_known():
    x = torch.ones(2, 2)
    before = internals.tensor_version(x)
    assert internals.tensor_version(x.add_(1)) == before + 1
    assert internals.writes_in_place(torch.ops.aten.add_.Tensor)
    assert not internals.writes_in_place(torch.ops.aten.add.Tensor)
    assert internals.is_matrix_product(torch.ops.aten.mm.default)
    assert internals.is_matrix_product(torch.ops.aten._grouped_mm.default)
    assert not internals.is_matrix_product(torch.ops.aten.add.Tensor)
    (count,) = internals.grouped_product_counts().values()
    assert count((5, 3), (2, 3, 7)) == 2 * 5 * 3 * 7


def test_what_a_model_runs_is_seen_by_a_dispatch_mode():
    seen = []

    class Listing(internals.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Listing():
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert torch.ops.aten.mm.default in seen


def test_the_fence_is_closed():
    """No other file of the package reaches for a private symbol of these libraries."""
    private = re.compile(
        r"(from|import) (torch|transformers|accelerate)[\w.]*\._|import _\w+ *# private"
        r"|\._(can_set_attn_implementation|no_split_modules|hf_hook|dtensor_from_local_like|spec|buffers|modules|version"
        r"|schema|overloadpacket|parameters)\b|\"_(no_split_modules|hf_hook|attn_implementation|buffers|modules)\""
    )
    package = Path(internals.__file__).parents[1]
    found = [
        f"{file.name}: {line.strip()}"
        for file in package.rglob("*.py")
        if file.name != "transformers_internals.py"
        for line in file.read_text().splitlines()
        if private.search(line)
    ]
    assert found == []
