"""A forward without weights says of groups, work and memory what a real one does."""

import copy
import itertools
from contextlib import suppress

import pytest
import torch
from tiny_models import MODELS, llama_config, make
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, FalconConfig, MixtralConfig, Qwen3NextConfig

from eva_dist.config import EvaConfig
from eva_dist.errors import LayerError
from eva_dist.modeling.forward import TokenForward, Trunk
from eva_dist.modeling.packing import Layout, attention_by_segment
from eva_dist.modeling.peft_rules import lora_config, resolve_targets
from eva_dist.modeling.taps import ForwardCut, collect_groups, tap_inputs
from eva_dist.modeling.trace import trace_forward

EVERYTHING = EvaConfig(r=4, target_modules="all-linear")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def targets(model, task=None):
    return [layer.name for layer in resolve_targets(model, lora_config(EVERYTHING, task)).layers]


def minibatch(samples, length):
    ids_BT = torch.randint(3, 64, (samples, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}


def forward(model, layout=Layout.segments):
    return TokenForward(Trunk(model), torch.device("cpu"), False, -100, layout)


def run_to_the_last(model, names, prepared):
    """Forward as the feed does: cut at the last tap."""
    missing = set(names)

    def take(name, _):
        missing.discard(name)
        if not missing:
            raise ForwardCut

    with torch.no_grad(), tap_inputs(model, names, take), suppress(ForwardCut):
        forward(model).run(prepared)


@pytest.mark.parametrize("name", MODELS)
def test_groups_are_those_of_a_real_forward(name):
    whole = make(name)
    model = whole.base_model
    within = {id(module) for module in model.modules()}
    names = [n for n in targets(whole, MODELS[name][1]) if id(whole.get_submodule(n)) in within and "pooler" not in n]
    prefix = f"{whole.base_model_prefix}." if model is not whole else ""
    names = [n.removeprefix(prefix) for n in names]
    real = forward(model, Layout.padded)
    with torch.no_grad(), collect_groups(model, names) as digests:
        prepared = real.prepare(minibatch(2, 9))
        digests.select = real.select(prepared)
        real.run(prepared)
    traced = trace_forward(make(name, device="meta").base_model, names, samples=2, length=9)
    assert [list(group) for group in traced.groups] == digests.names()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_work_and_peak_memory_are_those_of_a_real_forward(dtype):
    config = llama_config(**SMALL)
    model = AutoModel.from_config(copy.deepcopy(config), dtype=dtype).eval()
    names = targets(model)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(copy.deepcopy(config), dtype=dtype).eval()
    traced = trace_forward(skeleton, names, samples=4, length=64)
    prepared = forward(model).prepare(minibatch(4, 64))
    with attention_by_segment(model):
        with FlopCounterMode(display=False) as counter:
            run_to_the_last(model, names, prepared)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            run_to_the_last(model, names, prepared)
    events = profiled.profiler.kineto_results.events()
    peak = max(itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]"))
    assert traced.peak_bytes == peak
    assert max(traced.live_bytes.values()) < traced.peak_bytes
    # the kernel of a CPU's attention is not counted by torch; 4 products of all pairs of a sample's tokens
    assert traced.attention_operations == 3 * 4 * 4 * 64 * 64 * 128
    assert traced.operations - traced.attention_operations == counter.get_total_flops()
    assert set(traced.number_bytes.values()) == {dtype.itemsize}
    assert traced.product_bytes > sum(
        p.nbytes for n, p in skeleton.named_parameters() if "proj" in n and "down" not in n
    )


def test_the_model_is_left_as_it_was():
    model = make("llama", device="meta").base_model
    first = trace_forward(model, targets(model), 2, 8)
    assert model.config._attn_implementation == "sdpa"
    assert trace_forward(model, targets(model), 2, 8) == first
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_products_with_experts_are_counted():
    with torch.device("meta"):
        model = AutoModel.from_config(MixtralConfig(**SMALL, num_local_experts=4), dtype=torch.bfloat16).eval()
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    traced = trace_forward(model, names, samples=2, length=16)
    assert len(names) == 12
    hidden, inner, tokens = 128, 352, 32
    # the taps end where the last o_proj is entered; each token goes to 2 experts
    experts = 2 * 2 * 2 * tokens * 3 * hidden * inner
    attention = 3 * 2 * tokens * hidden * (2 * hidden + 2 * 64)
    routers = 2 * 2 * tokens * hidden * 4
    assert traced.operations - traced.attention_operations == experts + attention + routers - 2 * tokens * hidden**2


def test_a_model_with_its_own_attention_is_traced_padded():
    with torch.device("meta"):
        model = AutoModel.from_config(FalconConfig(**SMALL)).eval()
    traced = trace_forward(model, targets(model), samples=2, length=8)
    assert traced.layout == "padded"
    assert ("h.0.self_attention.query_key_value", "h.0.mlp.dense_h_to_4h") in traced.groups


def test_an_input_without_a_row_a_token_is_refused_as_in_a_run():
    model = make("bert", device="meta")
    with pytest.raises(LayerError, match="inputs of layer pooler.dense have shape"):
        trace_forward(model, targets(model), samples=2, length=8)


def test_a_model_that_looks_at_numbers_cannot_be_traced():
    with torch.device("meta"):
        model = AutoModel.from_config(Qwen3NextConfig(**SMALL)).eval()
    assert trace_forward(model, targets(model), samples=2, length=8) is None
