"""`budget="params"`: as many LoRA parameters as the uniform adapter has, and PEFT takes the result."""

import pytest
from peft import initialize_lora_eva_weights

from .conftest import build, eva, lora, ranks, token_minibatches, wrapped

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # Conv1D: the weight is [in_features, out_features]
}


def trainable(model) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" in name and p.requires_grad)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_parameters_are_those_of_the_uniform_adapter_but_for_less_than_one_component(kind):
    config, data = lora(TARGETS[kind], tau=0.9), token_minibatches(batch=16)
    model = wrapped(build(kind), config)
    uniform = trainable(model)
    found = eva(model, data, budget="params")
    by_ranks = eva(model, data)
    assert ranks(found) != ranks(by_ranks) and sum(ranks(by_ranks).values()) == 4 * len(found)
    costs = {f"base_model.model.{name}": sum(p.shape) for name, p in build(kind).named_parameters() if p.ndim == 2}
    cheapest = min(costs[f"{name}.weight"] for name, rank in ranks(found).items() if rank < 8)
    initialize_lora_eva_weights(model, eva_state_dict=dict(found))
    assert 0 <= uniform - trainable(model) < cheapest
    assert max(ranks(found).values()) <= 8


def test_without_redistribution_it_is_the_uniform_adapter():
    config, data = lora(TARGETS["llama"], rho=1.0, tau=0.9), token_minibatches(batch=16)
    assert set(ranks(eva(build("llama"), data, config, budget="params")).values()) == {4}
