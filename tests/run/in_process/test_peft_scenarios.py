"""What PEFT's own tests ask of its EVA initialisation, asked of ours, and a little harder."""

import itertools

import pytest
import torch
from peft import PeftModel, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer

from .conftest import assert_same, build, cosines, eva, lora, ranks, token_minibatches, wrapped

FIRST, SECOND = "transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"
SETTINGS = [
    {"rho": 2.0, "tau": 0.99},
    {"rho": 1.0, "tau": 0.9},
    {"rho": 1.0, "tau": 0.9, "whiten": True},
    {"rho": 1.0001, "tau": 0.9},
]


def gpt2_lora(**settings):
    return lora(**{"targets": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, **settings})


def shuffled(minibatches, seed):
    samples = {key: torch.cat([minibatch[key] for minibatch in minibatches]) for key in minibatches[0]}
    order = torch.randperm(len(samples["input_ids"]), generator=torch.Generator().manual_seed(seed))
    return [{key: rows[part] for key, rows in samples.items()} for part in order.split(8)]


def peft_measure(a, b):
    """What PEFT's test compares: components without the signs of their entries."""
    return cosines(a.abs(), b.abs())


def lora_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def overlap(a, b):
    """Mean squared cosine of the principal angles: components that swap places span the same directions."""
    k = min(len(a), len(b))
    return (a[:k].double() @ b[:k].double().T).square().sum()[None] / k if k else torch.empty(0)


def assert_consistent(results, least, measure):
    """The mean of every layer that has components, over all pairs of results."""
    compared = 0
    for name in results[0]:
        pairs = itertools.combinations([result[name] for result in results], 2)
        of_layer = torch.cat([measure(a, b) for a, b in pairs])
        if len(of_layer):
            assert of_layer.mean() > least, name
            compared += 1
    assert compared >= len(results[0]) // 2


@pytest.mark.parametrize("settings", SETTINGS)
def test_order_of_the_data_hardly_matters(settings):
    data = token_minibatches(count=12)
    results = [eva(build("gpt2"), shuffled(data, seed), gpt2_lora(**settings)) for seed in range(3)]
    assert not torch.equal(results[0][FIRST], results[1][FIRST])
    assert_consistent(results, 0.85, cosines)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_order_of_real_text_hardly_matters(settings, real_model, real_minibatches):
    generator = torch.Generator()
    config = lora(["query", "value", "intermediate.dense"], r=8, **settings)
    results = []
    for seed in range(3):
        order = torch.randperm(len(real_minibatches), generator=generator.manual_seed(seed)).tolist()
        results.append(eva(real_model, [real_minibatches[i] for i in order], config))
    assert_consistent(results, 0.75, peft_measure)
    assert_consistent(results, 0.6, overlap)


def flatten(layer_input, *_):
    return layer_input[0].reshape(-1, layer_input[0].shape[-1])


def test_mapping_serves_its_layers_and_the_others_are_flattened():
    asked = []

    def every_other_row(layer_input, model_input, layer_name):
        asked.append(layer_name)
        return flatten(layer_input)[::2]

    model, data, config = build("gpt2"), token_minibatches(), gpt2_lora(targets=["c_attn"], rho=1.0)
    mapping = {FIRST: every_other_row}
    once = {"prepare_model_inputs_fn": None, "max_steps": 6, "on_max_steps": "accept"}
    config.eva_config.tau = 1.0
    mixed = eva(model, data, config, prepare_layer_inputs_fn=mapping, **once)
    whole = eva(model, data, config, prepare_layer_inputs_fn=flatten, **once)
    unsaid = eva(model, data, config, prepare_layer_inputs_fn=None, **once)
    assert set(asked) == {FIRST}
    assert mapping == {FIRST: every_other_row}
    assert list(mixed) == [FIRST, SECOND]
    assert_same(whole, unsaid, least=1 - 1e-12)
    assert cosines(mixed[SECOND], whole[SECOND]).min() > 1 - 1e-12
    assert cosines(mixed[FIRST], whole[FIRST]).min() < 0.9999


def test_mapping_with_an_unknown_layer_is_refused_and_kept():
    mapping = {FIRST: flatten, "transformer.h.2.attn.c_attn": flatten}
    message = (
        "prepare_layer_inputs_fn is a mapping but the following module names were not found in the model"
        r".*transformer\.h\.2\.attn\.c_attn"
    )
    with pytest.raises(ValueError, match=message):
        eva(build("gpt2"), token_minibatches(), gpt2_lora(targets=["c_attn"]), prepare_layer_inputs_fn=mapping)
    assert len(mapping) == 2


@pytest.mark.parametrize("adjust", [True, False])
def test_scaling_follows_the_rank_only_when_not_adjusted(adjust):
    model = wrapped(build("llama"), lora("all-linear", lora_alpha=1, adjust_scaling_factors=adjust))
    before = {name: layer.scaling["default"] for name, layer in lora_layers(model).items()}
    result = eva(model, token_minibatches())
    moved = {name for name, rank in ranks(result).items() if rank not in (0, 4)}
    assert moved
    initialize_lora_eva_weights(model, eva_state_dict=result)
    after = {name: layer.scaling["default"] for name, layer in lora_layers(model).items()}
    kept = {name for name in after if after[name] == pytest.approx(before[name])}
    assert kept == (set(after) if adjust else set(after) - moved)


def test_adapter_without_memory_takes_the_result():
    """`low_cpu_mem_usage=True`, as PEFT advises: the adapter's weights are on the meta device until they are loaded."""
    model = wrapped(build("gpt2"), gpt2_lora(), low_cpu_mem_usage=True)
    assert "meta" in {p.device.type for p in model.parameters()}
    result = eva(model, token_minibatches())
    initialize_lora_eva_weights(model, eva_state_dict=dict(result))
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for name, layer in lora_layers(model).items():
        assert torch.equal(layer.lora_A["default"].weight, result[name])


@pytest.mark.parametrize("rank_zero", [False, True])
def test_result_loads_saves_and_loads_again(rank_zero, tmp_path):
    data = token_minibatches()
    model = wrapped(build("gpt2"), gpt2_lora(targets=["c_attn"]))
    result = eva(model, data)
    assert list(result) == [f"base_model.model.{FIRST}", f"base_model.model.{SECOND}"]
    if rank_zero:
        result[f"base_model.model.{FIRST}"] = result[f"base_model.model.{FIRST}"][:0]
    initialize_lora_eva_weights(model, eva_state_dict=dict(result))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("gpt2"), tmp_path, low_cpu_mem_usage=True)
    layers = lora_layers(loaded)
    assert set(layers) == {name for name, rank in ranks(result).items() if rank}
    assert len(layers) == (1 if rank_zero else 2)
    for name, layer in layers.items():
        torch.testing.assert_close(layer.lora_A["default"].weight, result[name], rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**data[0]).logits, build("gpt2").eval()(**data[0]).logits)


def test_base_model_gives_the_same_by_its_own_names():
    data = token_minibatches()
    by_peft_name = eva(wrapped(build("gpt2"), gpt2_lora()), data)
    plain = eva(build("gpt2"), data, gpt2_lora())
    assert_same({f"base_model.model.{name}": rows for name, rows in plain.items()}, by_peft_name, least=1 - 1e-12)


def test_only_an_embedding_gives_nothing_and_peft_says_so():
    model = wrapped(build("gpt2"), lora(["wte"]))
    result = eva(model, token_minibatches())
    assert result == {}
    with pytest.warns(UserWarning, match="not found in the eva state_dict"):
        initialize_lora_eva_weights(model, eva_state_dict=result)


def indices_that_count(model_input, peft_config):
    """Written anew, so that it shares no line with the default: labels are never looked at."""
    return torch.tensor([(b, t) for b, row in enumerate(model_input["counts"]) for t, c in enumerate(row) if c])


@pytest.mark.parametrize("use_label_mask", [True, False])
@pytest.mark.parametrize("value", [-100, 7])
def test_masked_tokens_have_no_influence(use_label_mask, value):
    data = token_minibatches(labels=True, padding=True)
    data = [{**m, "labels": torch.where(m["labels"] == -100, value, 8)} for m in data]
    config = lora(use_label_mask=use_label_mask, label_mask_value=value)
    marked = [
        {
            "input_ids": m["input_ids"],
            "attention_mask": m["attention_mask"],
            "counts": (m["attention_mask"].bool() & ((m["labels"] != value) | (not use_label_mask))).tolist(),
        }
        for m in data
    ]
    result = eva(build("llama"), data, config)
    by_hand = eva(
        build("llama"),
        marked,
        config,
        prepare_model_inputs_fn=indices_that_count,
        forward_fn=lambda model, inputs: model(inputs["input_ids"], attention_mask=inputs["attention_mask"]),
    )
    assert_same(result, by_hand, least=1 - 1e-9)


def test_label_mask_changes_the_result():
    data = token_minibatches(labels=True, padding=True)
    masked, unmasked = (eva(build("llama"), data, lora(use_label_mask=use)) for use in (True, False))
    assert any(not torch.equal(masked[name], unmasked[name]) for name in masked)
    name = "model.layers.0.self_attn.q_proj"
    assert cosines(masked[name], unmasked[name]).min() < 0.999


@pytest.mark.parametrize("empty", [[], (), iter([]), torch.utils.data.DataLoader([])])
def test_empty_loader(empty):
    with pytest.raises(ValueError, match="dataloader is empty"):
        eva(build("gpt2"), empty, gpt2_lora())
