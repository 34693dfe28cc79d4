"""Target layers: the ones that `get_peft_model` wraps, found without touching the model."""

import json
import warnings

import pytest
import torch
from peft import EvaConfig as PeftEvaConfig
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny_models import MODELS, make
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from eva_dist.config import EvaConfig
from eva_dist.errors import LayerError
from eva_dist.modeling.peft_rules import (
    lora_config,
    resolve_peft_model_targets,
    resolve_targets,
    write_adapter_config,
)

CASES = [
    ("llama", {"target_modules": None}),
    ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    ("llama", {"target_modules": "all-linear"}),
    ("llama", {"target_modules": "ALL-LINEAR"}),
    ("llama", {"target_modules": r".*layers\.1\..*(gate|up)_proj"}),
    ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj", "o_proj"]}),
    ("llama", {"target_modules": "all-linear", "exclude_modules": r".*layers\.0\..*"}),
    ("llama", {"target_modules": ["layers.1.self_attn.q_proj", "lm_head"]}),
    ("llama", {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2, "k_proj": 7}}),
    ("llama", {"target_modules": ["q_proj"], "rank_pattern": {r".*\.0\..*": 3, "model.layers.0.self_attn.q_proj": 5}}),
    ("llama trunk", {"target_modules": "all-linear"}),
    ("gpt2", {"target_modules": None}),
    ("gpt2", {"target_modules": "all-linear", "exclude_modules": ["c_fc"]}),
    ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "rank_pattern": {"h.1.attn.c_attn": 9}}),
    ("bert", {"target_modules": None}),
    ("bert", {"target_modules": "all-linear"}),
    ("bert", {"target_modules": ["query", "pooler.dense"]}),
    ("bert for sequences", {"target_modules": "all-linear"}),
    ("bert for sequences", {"target_modules": ["query", "classifier"]}),
    ("bert for tokens", {"target_modules": ["query", "value"]}),
    ("bert for questions", {"target_modules": ["query", "value"]}),
    ("bert for masks", {"target_modules": "all-linear"}),
]


def config_for(name: str, settings: dict) -> LoraConfig:
    return lora_config(EvaConfig(r=4, rho=2.0, **settings), MODELS[name][1])


def wrapped_by_peft(name: str, settings: dict) -> dict[str, LoraLayer]:
    config = config_for(name, settings)
    config.init_lora_weights, config.fan_in_fan_out = True, name == "gpt2"
    model = get_peft_model(make(name), config)
    return {
        module_name.removeprefix("base_model.model."): module
        for module_name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_targets_are_what_get_peft_model_wraps_with_the_same_ranks_and_sizes(name, settings, device):
    found = resolve_targets(make(name, device), config_for(name, settings))
    expected = wrapped_by_peft(name, settings)
    assert expected
    assert [layer.name for layer in found.layers] == list(expected)
    assert found.unsupported == ()
    for layer, module in zip(found.layers, expected.values(), strict=True):
        assert layer.r == module.r["default"]
        assert (layer.in_features, layer.out_features) == (module.in_features, module.out_features)
        assert module.lora_A["default"].weight.shape == (layer.r, layer.in_features)
        assert layer.max_rank == min(2 * layer.r, layer.in_features)
        assert layer.transposed == (name == "gpt2")


@pytest.mark.parametrize(("name", "head"), [("bert for tokens", "classifier"), ("bert for questions", "qa_outputs")])
def test_a_head_that_peft_trains_in_full_is_no_target_though_get_peft_model_would_trip_over_it(name, head):
    settings = {"target_modules": "all-linear"}
    with pytest.raises(TypeError, match="modules_to_save cannot be applied"):
        wrapped_by_peft(name, settings)
    names = [layer.name for layer in resolve_targets(make(name), config_for(name, settings)).layers]
    assert head not in names and len(names) == 12


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert for sequences"])
def test_the_model_is_left_as_it_was(name, device):
    model = make(name, device)
    next(model.parameters()).requires_grad_(False)
    modules = {n: (id(m), type(m), m.training) for n, m in model.named_modules()}
    tensors = {n: (id(p), p.requires_grad) for n, p in [*model.named_parameters(), *model.named_buffers()]}
    config = config_for(name, {"target_modules": "all-linear"})
    before = dict(vars(config))
    resolve_targets(model, config)
    assert {n: (id(m), type(m), m.training) for n, m in model.named_modules()} == modules
    assert {n: (id(p), p.requires_grad) for n, p in [*model.named_parameters(), *model.named_buffers()]} == tensors
    assert not hasattr(model, "peft_config")
    assert vars(config) == before


def test_no_weight_is_copied(monkeypatch):
    """A copy would double the memory of a large model."""

    def refuse(tensor, memo):
        raise AssertionError(f"copied {tuple(tensor.shape)}")

    model = make("llama")
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", refuse)
    assert resolve_targets(model, config_for("llama", {"target_modules": ["q_proj"]})).layers


def test_the_model_is_left_as_it_was_when_nothing_fits():
    model = make("llama")
    with pytest.raises(LayerError):
        resolve_targets(model, config_for("llama", {"target_modules": ["nope"]}))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_that_fit_nothing_are_refused_with_the_names_that_would():
    with pytest.raises(LayerError) as caught:
        resolve_targets(make("llama"), config_for("llama", {"target_modules": ["query", "key"]}))
    text = str(caught.value)
    assert text.startswith("eva.target_modules=['key', 'query'] (exclude_modules=None) does not fit LlamaForCausalLM: ")
    assert text.endswith(
        "its linear layers end in q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"
    )


def test_no_default_targets_for_an_unknown_architecture():
    model = nn.ModuleDict({"first": nn.Linear(8, 8)})
    with pytest.raises(LayerError, match="^eva.target_modules=None .* does not fit ModuleDict: .*end in first$"):
        resolve_targets(model, lora_config(EvaConfig(r=2)))


def test_a_rank_that_a_layer_cannot_hold_names_the_layer():
    settings = {"target_modules": ["q_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 33}}
    with pytest.raises(LayerError, match="eva.r=33 must be <= in_features=32 of layer model.layers.1.self_attn.q_proj"):
        resolve_targets(make("llama"), config_for("llama", settings))


def test_embeddings_and_convolutions_are_reported_not_served():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "conv": nn.Conv1d(8, 8, 3), "dense": nn.Linear(8, 8)})
    found = resolve_targets(model, lora_config(EvaConfig(r=2, target_modules=["embed", "conv", "dense"])))
    assert [layer.name for layer in found.layers] == ["dense"]
    assert found.unsupported == ("embed", "conv")


def test_layers_of_a_peft_model_have_its_own_names():
    config = config_for("llama", {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}})
    config.init_lora_weights = True
    found = resolve_peft_model_targets(get_peft_model(make("llama"), config), config, "default")
    plain = resolve_targets(make("llama"), config)
    assert [layer.name for layer in found.layers] == [f"base_model.model.{layer.name}" for layer in plain.layers]
    assert [layer.r for layer in found.layers] == [layer.r for layer in plain.layers] == [4, 2, 4, 2]


def test_quantised_like_parameters_do_not_stand_in_the_way():
    """Integer weights cannot require gradients; injection must not try to copy them."""
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    found = resolve_targets(model, lora_config(EvaConfig(r=2, target_modules=["0"])))
    assert [layer.name for layer in found.layers] == ["0"] and model[0].weight.dtype == torch.int8


def test_the_adapter_config_is_what_peft_reads(tmp_path):
    eva = EvaConfig(r=4, rho=1.5, tau=0.98, whiten=True, lora_alpha=8, target_modules="all-linear")
    patterns = {"rank_pattern": {"a": 3}, "alpha_pattern": {"a": 6.0}, "target_modules": ["b", "a"]}
    base = {"base_model_name_or_path": "base", "revision": "main", "fan_in_fan_out": True}
    write_adapter_config(tmp_path, eva, "CAUSAL_LM", **base, **patterns)
    read = LoraConfig.from_pretrained(str(tmp_path))
    assert read.target_modules == {"a", "b"} and read.rank_pattern == {"a": 3} and read.alpha_pattern == {"a": 6.0}
    assert (read.r, read.lora_alpha, read.task_type, read.init_lora_weights) == (4, 8, "CAUSAL_LM", "eva")
    assert (read.base_model_name_or_path, read.revision, read.fan_in_fan_out) == ("base", "main", True)
    eva_config = json.loads((tmp_path / "adapter_config.json").read_text())["eva_config"]
    assert PeftEvaConfig(**eva_config) == PeftEvaConfig(rho=1.5, tau=0.98, whiten=True)


def test_experts_and_routers_of_a_mixture_are_left_out_by_name():
    """PEFT wraps their weights, which are no layer's; the wrapper of a second weight has no name of its own."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 2}
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(vocab_size=32, num_attention_heads=2, num_key_value_heads=1, **sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = resolve_targets(model, lora_config(EvaConfig(r=4, target_modules="all-linear"), "CAUSAL_LM"))
    assert [layer.name.rpartition(".")[2] for layer in targets.layers] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert targets.unsupported == ("model.layers.0.mlp.gate", "model.layers.0.mlp.experts")
