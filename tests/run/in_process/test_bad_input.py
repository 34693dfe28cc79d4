"""Every wrong input ends in an error that says what and where, and leaves the model as it was."""

import pytest
import torch
from peft import EvaConfig, LoraConfig

from eva_dist.config import SolverConfig, SolverName
from eva_dist.errors import (
    ConfigError,
    EmptyStreamError,
    LayerError,
    NonFiniteActivationsError,
    NotConvergedError,
    TooFewTokensError,
)

from .conftest import assert_no_hooks, build, eva, eva_vectors, lora, token_minibatches, vectors


@pytest.fixture(params=["training", "eval"])
def model(request):
    """A llama whose hooks and modes are looked at when the test is over."""
    model = build("llama").train(request.param == "training")
    yield model
    assert_no_hooks(model)
    assert {module.training for module in model.modules()} == {request.param == "training"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def fully_masked(count=3):
    data = token_minibatches(count=count, labels=True)
    for minibatch in data:
        minibatch["labels"].fill_(-100)
    return data


def test_rho_below_one():
    with pytest.raises(ValueError, match="rho"):
        EvaConfig(rho=0.5)


def test_r_above_in_features(model):
    with pytest.raises(
        LayerError, match=r"r=33 must be <= in_features=32 of layer model\.layers\.0\.self_attn\.q_proj"
    ):
        eva(model, token_minibatches(), lora(r=33))


def test_r_rho_above_in_features_is_cut(model):
    result = eva(model, token_minibatches(batch=16), lora(["q_proj"], r=20, rho=4.0, tau=0.0))
    assert [len(rows) for rows in result.values()] != []
    assert max(len(rows) for rows in result.values()) <= 32
    assert sum(len(rows) for rows in result.values()) == 40


def test_no_layer_matches(model):
    with pytest.raises(LayerError, match=r"target_modules=.*nonesuch.*LlamaForCausalLM.*q_proj, k_proj"):
        eva(model, token_minibatches(), lora(["nonesuch"]))


@pytest.mark.parametrize("loader", [list, iter])
def test_every_token_masked(model, loader):
    with pytest.raises(EmptyStreamError, match=r"no token that counts.*labels.*use_label_mask=false"):
        eva(model, loader(fully_masked()), lora())


def test_every_token_masked_but_the_mask_is_off(model):
    assert len(eva(model, fully_masked(), lora(use_label_mask=False))) == 8


@pytest.mark.parametrize("loader", [list, iter])
@pytest.mark.parametrize("on_max_steps", ["error", "accept"])
def test_never_as_many_tokens_as_components(model, loader, on_max_steps):
    """Minibatches of 6 tokens; r * rho = 8."""
    data = token_minibatches(count=3, batch=1, length=6)
    with pytest.raises(TooFewTokensError, match=r"8 components.*layers\.0\.self_attn\.q_proj.*lower r or rho"):
        eva(model, loader(data), lora(), on_max_steps=on_max_steps)


def test_some_minibatches_too_short_are_passed_over(model):
    short, data = token_minibatches(count=2, batch=1, length=6), token_minibatches()
    options = {"max_steps": 8, "on_max_steps": "accept"}
    mixed = eva(model, [short[0], *data, short[1]], lora(tau=1.0), **options)
    plain = eva(model, data, lora(tau=1.0), max_steps=6, on_max_steps="accept")
    assert all(torch.equal(mixed[name], plain[name]) for name in plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("step", [0, 2])
def test_activations_that_are_no_numbers(step, value):
    data, model = vectors(), build("mlp")
    data[step]["x"][5, 3] = value
    with pytest.raises(NonFiniteActivationsError, match=rf"layer left hold NaN or infinity at step {step}"):
        eva_vectors(model, data, lora(["left", "right"], tau=1.0))
    assert_no_hooks(model)


def test_max_steps_reached_says_which_layers_and_by_how_much(model):
    with pytest.raises(NotConvergedError) as error:
        eva(model, token_minibatches(), lora(rho=1.0, tau=1.0), max_steps=3)
    lines = str(error.value).splitlines()
    assert "max_steps=3 was reached and 8 of 8 layers have not converged to tau=1.0" in lines[0]
    assert "on_max_steps=accept" in lines[0]
    shared = "model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj, model.layers.0.self_attn.v_proj"
    assert f"  {shared}: 4 of 4 components below, lowest cosine 0." in lines[1]
    assert [line.strip().split(":")[0].rpartition(".")[2] for line in lines[1:]] == ["v_proj", "o_proj"] * 2


def test_one_step_says_that_there_was_nothing_to_compare(model):
    with pytest.raises(NotConvergedError, match="o_proj: only 1 updates, 0 steps too short"):
        eva(model, token_minibatches(), lora(tau=0.0), max_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "qr"}, r"'qr'.*subspace.*incremental.*covariance"),
        ({"solver": SolverConfig(SolverName.covariance, power_steps=2)}, r"power_steps=2 has no meaning"),
        ({"on_max_steps": "ignore"}, r"'ignore'.*error.*accept"),
        ({"budget": "bytes"}, r"'bytes'.*budget one of \['ranks', 'params'\]"),
        ({"max_steps": 0}, r"max_steps=0 must be >= 1"),
        ({"max_steps": -3}, r"max_steps=-3 must be >= 1"),
    ],
)
def test_wrong_option(model, options, message):
    with pytest.raises(ConfigError, match=message):
        eva(model, token_minibatches(), lora(), **options)


def test_peft_config_missing(model):
    with pytest.raises(ValueError, match="peft_config is required if model is not a PeftModel"):
        eva(model, token_minibatches())


def test_eva_config_missing(model):
    with pytest.raises(ConfigError, match="eva_config=None must be a peft.EvaConfig"):
        eva(model, token_minibatches(), LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize("shape", [(8, 12, 32), (8 * 12 * 32,)])
def test_prepared_rows_are_not_two_dimensional(model, shape):
    def wrong(layer_input, model_input, layer_name):
        return layer_input[0].reshape(shape)

    with pytest.raises(LayerError, match=r"returned shape \(.*\) for layer model\.layers\.0.*must be 2-d"):
        eva(model, token_minibatches(), lora(), prepare_layer_inputs_fn=wrong)


def test_prepared_rows_fail(model):
    def failing(layer_input, model_input, layer_name):
        raise KeyError(layer_name)

    with pytest.raises(KeyError, match="o_proj"):
        eva(model, token_minibatches(), lora(["o_proj"]), prepare_layer_inputs_fn=failing)
