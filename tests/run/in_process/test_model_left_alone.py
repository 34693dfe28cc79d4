"""The model comes back as it was, whether the pass ends well or not, and an adapter takes no part."""

import pytest
import torch

from .conftest import assert_no_hooks, assert_same, build, eva, lora, token_minibatches, wrapped


def snapshot(model):
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "classes": {name: type(module) for name, module in model.named_modules()},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
    }


def assert_untouched(model, before):
    after = snapshot(model)
    weights, weights_before = after.pop("weights"), before.pop("weights")
    assert after == before
    assert list(weights) == list(weights_before)
    assert all(torch.equal(weights[name], weights_before[name]) for name in weights)
    assert_no_hooks(model)


def peculiar_llama():
    """Training, but for one frozen block in eval mode."""
    model = build("llama").train()
    model.model.layers[0].eval().requires_grad_(False)
    return model


def peft_llama(frozen=False, disabled=False):
    model = wrapped(peculiar_llama(), lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
            if "lora_" in name and frozen:
                parameter.requires_grad_(False)
    if disabled:
        model.base_model.disable_adapter_layers()
    return model


MODELS = {
    "base": peculiar_llama,
    "peft": peft_llama,
    "peft frozen": lambda: peft_llama(frozen=True),
    "peft switched off": lambda: peft_llama(disabled=True),
}


@pytest.mark.parametrize("kind", MODELS)
def test_after_a_pass(kind):
    model = MODELS[kind]()
    before = snapshot(model)
    eva(model, token_minibatches(), lora() if kind == "base" else None)
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("call", [1, 2, 4])
def test_after_an_exception_in_forward(kind, call):
    """The first call finds the input groups, the later ones are steps."""
    model = MODELS[kind]()
    before = snapshot(model)
    calls = 0

    def failing(model, inputs):
        nonlocal calls
        calls += 1
        model(**inputs)
        if calls == call:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        eva(model, token_minibatches(), lora() if kind == "base" else None, forward_fn=failing)
    assert_untouched(model, before)


def test_after_an_exception_inside_the_model():
    model = peculiar_llama()
    before = snapshot(model)
    outside = [{"input_ids": torch.full((4, 8), 10_000)}]
    with pytest.raises(IndexError):
        eva(model, [*token_minibatches(count=1), *outside], lora(tau=1.0))
    assert_untouched(model, before)


def test_dropout_is_off_during_the_pass():
    model = build("llama", attention_dropout=0.5).train()
    assert_same(eva(model, token_minibatches(), lora()), eva(build("llama").eval(), token_minibatches(), lora()))


def test_adapter_takes_no_part():
    """`lora_B` is far from zero, so a forward through the adapter would change every deeper input."""
    model, data = peft_llama(), token_minibatches()
    with torch.no_grad():
        adapted = model(**data[0]).logits
        with model.disable_adapter():
            assert not torch.allclose(adapted, model(**data[0]).logits, atol=0.1)
    plain = {f"base_model.model.{name}": rows for name, rows in eva(build("llama"), data, lora()).items()}
    assert_same(eva(model, data), plain, least=1 - 1e-9)


def test_result_is_the_caller_s_own():
    """Float32, contiguous, detached, and no tensor shares memory with another or with the model."""
    model = build("llama")
    result = eva(model, token_minibatches(), lora())
    storages = [rows.untyped_storage().data_ptr() for rows in result.values() if rows.numel()]
    assert len(set(storages)) == len(storages) > 0
    assert not set(storages) & {p.untyped_storage().data_ptr() for p in model.parameters()}
    for rows in result.values():
        assert (rows.dtype, rows.is_contiguous(), rows.requires_grad) == (torch.float32, True, False)
        assert rows.shape[1] == 32
