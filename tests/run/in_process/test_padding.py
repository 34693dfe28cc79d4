"""Padding is not forwarded where nothing else would be lost: plain text, padded at the right, the default functions."""

import pytest
import torch

from eva_dist.calibration.callbacks import (
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
)

from .conftest import assert_same, build, eva, lora, recorded_calls, token_minibatches

STEPS = 3
THREE_STEPS = {"max_steps": STEPS, "on_max_steps": "accept"}
TRUNKS = {
    "llama": ("model", None),
    "gpt2": ("transformer", ["c_attn", "c_fc"]),
    "bert": ("bert", ["query", "intermediate.dense"]),
}


def own_preparation(model_input, peft_config):
    """No other than the default one, but not known to be so: nothing is packed."""
    return prepare_model_inputs_fn_language_modeling(model_input, peft_config)


def own_rows(layer_input, model_input, name):
    return prepare_layer_inputs_fn_language_modeling(layer_input, model_input, name)


def ragged(**options):
    return token_minibatches(padding=True, **options)


def left_padded(minibatch):
    return {key: rows.flip(1) for key, rows in minibatch.items()}


def step_calls(model, data, trunk, targets=None, **options):
    """What the trunk was called with in the steps, the last calls of a pass."""
    config = lora(targets, tau=1.0)
    with recorded_calls(model.get_submodule(trunk)) as calls:
        result = eva(model, data, config, **THREE_STEPS, **options)
    return calls[-STEPS:], calls, result


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("kind", TRUNKS)
def test_plain_batches_are_forwarded_without_their_padding_and_give_the_same_components(kind, labels):
    trunk, targets = TRUNKS[kind]
    data = ragged(labels=labels)
    steps, _, packed = step_calls(build(kind), data, trunk, targets)
    for kwargs, minibatch in zip(steps, data, strict=False):
        real = minibatch["attention_mask"].bool()
        assert torch.equal(kwargs["input_ids"], minibatch["input_ids"][real][None])
        assert torch.equal(kwargs["position_ids"], (real.cumsum(1) - 1)[real][None])
        assert kwargs.get("attention_mask", torch.ones(1)).all()
    _, calls, unpacked = step_calls(build(kind), data, trunk, targets, prepare_model_inputs_fn=own_preparation)
    assert not any("position_ids" in kwargs for kwargs in calls)
    assert list(packed) == list(unpacked)
    for name, rows in packed.items():
        torch.testing.assert_close(rows, unpacked[name], rtol=0, atol=1e-5)


def test_batches_without_a_mask_are_forwarded_in_one_row():
    data = [{"input_ids": minibatch["input_ids"]} for minibatch in token_minibatches()]
    steps, _, packed = step_calls(build("llama"), data, "model")
    assert all(kwargs["input_ids"].shape == (1, 8 * 12) for kwargs in steps)
    assert_same(packed, step_calls(build("llama"), token_minibatches(), "model")[2], least=1 - 1e-9)


NOT_PACKED = {
    "padding at the left": (left_padded, {}),
    "token types": (lambda m: {**m, "token_type_ids": torch.zeros_like(m["input_ids"])}, {}),
    "positions": (lambda m: {**m, "position_ids": torch.arange(12).expand(8, 12)}, {}),
    "a key that the model does not know": (lambda m: {**m, "idx": torch.arange(8)}, {}),
    "a forward of one's own": (dict, {"forward_fn": lambda model, inputs: model(**inputs)}),
    "tokens picked by oneself": (dict, {"prepare_model_inputs_fn": own_preparation}),
    "rows picked by oneself": (dict, {"prepare_layer_inputs_fn": own_rows}),
    "rows picked layer by layer": (
        dict,
        {"prepare_layer_inputs_fn": dict.fromkeys(["bert.encoder.layer.0.attention.self.query"], own_rows)},
    ),
}


@pytest.mark.parametrize("case", NOT_PACKED)
def test_what_would_lose_something_is_forwarded_as_it_is(case):
    change, options = NOT_PACKED[case]
    data = [change(minibatch) for minibatch in ragged()]
    _, calls, _ = step_calls(build("bert"), data, "bert", ["query"], **options)
    assert len(calls) >= STEPS + 1
    for kwargs, minibatch in zip(calls[1:], data, strict=False):
        assert torch.equal(kwargs["attention_mask"], minibatch["attention_mask"])
        assert (kwargs.get("position_ids") is not None) == ("position_ids" in minibatch)


@pytest.mark.parametrize("first", ["right", "left"])
def test_each_minibatch_is_judged_by_itself(first):
    """The first one decides whether the model can; each is then packed or not as it is."""
    data = [m if (i % 2 == 0) == (first == "right") else left_padded(m) for i, m in enumerate(ragged())]
    steps, _, mixed = step_calls(build("llama"), data, "model")
    packed = ["position_ids" in kwargs for kwargs in steps]
    assert packed == ([True, False, True] if first == "right" else [False] * 3)
    _, _, unpacked = step_calls(build("llama"), data, "model", prepare_model_inputs_fn=own_preparation)
    for name, rows in mixed.items():
        torch.testing.assert_close(rows, unpacked[name], rtol=0, atol=1e-5)


def test_a_sample_that_is_padding_throughout_is_no_sample():
    data = ragged()
    for minibatch in data:
        minibatch["attention_mask"][3] = 0
    _, _, packed = step_calls(build("llama"), data, "model")
    _, _, unpacked = step_calls(build("llama"), data, "model", prepare_model_inputs_fn=own_preparation)
    for name, rows in packed.items():
        torch.testing.assert_close(rows, unpacked[name], rtol=0, atol=1e-5)


def test_the_model_attends_as_before_after_a_pass_and_after_an_exception():
    model = build("llama")
    before = model.config.to_dict()
    step_calls(model, ragged(), "model")
    assert model.config.to_dict() == before
    outside = {"input_ids": torch.full((4, 8), 10_000)}
    with pytest.raises(IndexError):
        step_calls(model, [*ragged(count=2), outside], "model")
    assert model.config.to_dict() == before and model.config._attn_implementation == "sdpa"
