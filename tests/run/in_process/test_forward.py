"""What runs during a pass, and what does not: no head, no loss, no cache; a forward of one's own gets everything."""

import pytest
import torch

from .conftest import assert_same, build, eva, eva_vectors, lora, recorded_calls, token_minibatches, vectors


@pytest.mark.parametrize(
    ("kind", "trunk", "head", "targets"),
    [
        ("llama", "model", "lm_head", ["q_proj"]),
        ("gpt2", "transformer", "lm_head", ["c_attn"]),
        ("bert", "bert", "classifier", ["query"]),
    ],
)
def test_only_the_trunk_runs_and_labels_stay_out(kind, trunk, head, targets):
    model, data = build(kind), token_minibatches(labels=True)
    inner, outer = model.get_submodule(trunk), model.get_submodule(head)
    with recorded_calls(model) as whole, recorded_calls(inner) as calls, recorded_calls(outer) as head_calls:
        eva(model, data, lora(targets))
    assert (whole, head_calls) == ([], [])
    assert len(calls) >= 3
    for kwargs in calls:
        layouts = {"attention_mask", "position_ids", "use_cache"}
        assert "input_ids" in kwargs and set(kwargs) <= {"input_ids", *layouts}
        assert kwargs.get("use_cache", False) is False


def test_a_target_in_the_head_makes_the_whole_model_run_still_without_labels():
    model = build("bert")
    data = [{**m, "labels": torch.zeros(8, dtype=torch.long)} for m in token_minibatches()]
    with recorded_calls(model) as calls:
        result = eva_vectors(model, data, lora(["query", "classifier"], rho=1.0, tau=0.5))
    assert "classifier" in result and len(result) == 3
    assert len(calls) >= 3
    assert all("labels" not in kwargs for kwargs in calls)


def test_a_plain_module_gets_what_its_forward_names():
    model = build("mlp")
    data = [{**m, "labels": torch.zeros(64), "idx": list(range(64))} for m in vectors()]
    with recorded_calls(model) as calls:
        result = eva_vectors(model, data, lora(["left", "out"]))
    assert list(result) == ["left", "out"]
    assert calls and all(set(kwargs) == {"x"} for kwargs in calls)


def test_images():
    generator = torch.Generator().manual_seed(0)
    fade = 0.6 ** torch.arange(16)
    data = [
        {"pixel_values": torch.randn(8, 1, 16, 16, generator=generator) * fade, "labels": torch.zeros(8).long()}
        for _ in range(6)
    ]
    model = build("vit")
    with recorded_calls(model.classifier) as head_calls:
        result = eva_vectors(model, data, lora(["q_proj", "fc1"], tau=0.9))
    assert list(result) == [f"vit.layers.{i}.{kind}" for i in range(2) for kind in ("attention.q_proj", "mlp.fc1")]
    assert sum(len(rows) for rows in result.values()) == 4 * 4
    assert head_calls == []


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_encoder_decoder_makes_its_decoder_s_inputs_from_labels(side):
    """Source and target differ in length; the decoder gets the labels, shifted right."""
    targets = [m["input_ids"] for m in token_minibatches(length=7, seed=5)]
    data = [{**m, "labels": labels} for m, labels in zip(token_minibatches(), targets, strict=True)]
    model = build("t5")
    with recorded_calls(model) as calls, recorded_calls(model.decoder) as decoder_calls:
        result = eva_vectors(model, data, lora(rf"{side}\..*SelfAttention\.(q|k|v)"))
    assert len(result) == 6 and sum(len(rows) for rows in result.values()) == 6 * 4
    assert all("labels" in kwargs for kwargs in calls)
    assert torch.equal(decoder_calls[0]["input_ids"][:, 1:], targets[0][:, :-1])


def test_a_forward_of_one_s_own_gets_everything():
    model, data, seen = build("llama"), token_minibatches(labels=True), []

    def forward(given_model, inputs):
        seen.append((given_model, inputs))
        return given_model(**inputs)

    with recorded_calls(model.lm_head) as head_calls:
        result = eva(model, data, lora(), forward_fn=forward)
    assert all(given_model is model for given_model, _ in seen)
    assert len(seen) == len(head_calls) > 2
    for (_, inputs), minibatch in zip(seen[1:], data, strict=False):
        assert set(inputs) == set(minibatch)
        assert all(torch.equal(inputs[key], minibatch[key]) for key in minibatch)
    assert_same(result, eva(model, data, lora()), least=1 - 1e-9)


def test_minibatches_that_are_no_mappings_need_a_forward_of_one_s_own():
    data = [m["x"] for m in vectors()]
    config = lora(["left", "out"])
    with pytest.raises(TypeError, match="Tensor.*pass a forward_fn"):
        eva_vectors(build("mlp"), data, config)
    with pytest.raises(TypeError, match="Tensor.*prepare_model_inputs_fn and forward_fn"):
        eva(build("mlp"), data, config)
    own = eva_vectors(build("mlp"), data, config, forward_fn=lambda model, inputs: model(inputs))
    assert_same(own, eva_vectors(build("mlp"), vectors(), config), least=1 - 1e-12)


def test_images_with_the_functions_for_tokens_are_told_what_to_pass():
    with pytest.raises(TypeError, match=r"\['pixel_values'\].*prepare_model_inputs_fn=None"):
        eva(build("vit"), [{"pixel_values": torch.zeros(8, 1, 16, 16)}], lora(["q_proj"]))


def test_a_layer_without_one_row_a_token_is_named():
    """BERT's pooler sees the first token only."""
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense.*\(8, 32\).*prepare_layer_inputs_fn"):
        eva(build("bert"), token_minibatches(), lora(["query", "pooler.dense"]))
