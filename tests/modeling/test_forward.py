"""The trunk alone runs, token rows are picked, inputs are moved."""

from collections import UserDict, namedtuple

import pytest
import torch
from tiny_models import llama_config, make
from torch import nn
from transformers import BatchEncoding, T5Config, T5ForConditionalGeneration

from eva_dist.errors import LayerError
from eva_dist.modeling.forward import (
    Placed,
    TokenForward,
    Trunk,
    find_trunk,
    input_device,
    is_right_padded,
    move_to_device,
    place,
    real_tokens,
    select_tokens,
)
from eva_dist.modeling.packing import Layout
from tests.collecting import collect_rows

Pair = namedtuple("Pair", "first second")
KEEP_BT = torch.tensor([[True, False, True], [False, True, True]])
CPU = torch.device("cpu")


def kept(keep_BT):
    """A minibatch of which these tokens count."""
    kept_N = None if keep_BT.all() else keep_BT.flatten().nonzero()[:, 0]
    return Placed({}, tuple(keep_BT.shape), kept_N, tuple(keep_BT.sum(1).tolist()))


def test_rows_are_picked_in_sample_order_from_three_and_two_dimensions():
    x_BTD = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    expected_TD = torch.stack([x_BTD[0, 0], x_BTD[0, 2], x_BTD[1, 1], x_BTD[1, 2]])
    assert torch.equal(select_tokens(x_BTD, kept(KEEP_BT), "q"), expected_TD)
    assert torch.equal(select_tokens(x_BTD.view(6, 4), kept(KEEP_BT), "q"), expected_TD)
    assert select_tokens(x_BTD, kept(torch.zeros_like(KEEP_BT)), "q").shape == (0, 4)


def test_rows_that_all_count_are_not_copied():
    x_BTD = torch.randn(2, 3, 4)
    rows_TD = select_tokens(x_BTD, kept(torch.ones_like(KEEP_BT)), "q")
    assert torch.equal(rows_TD, x_BTD.view(6, 4)) and rows_TD.data_ptr() == x_BTD.data_ptr()


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 2, 4), (2, 4), (5, 4), (4,), (1, 2, 3, 4), (2, 1, 4)])
def test_an_input_without_a_row_a_token_is_refused_by_name_and_shape(shape):
    with pytest.raises(LayerError) as caught:
        select_tokens(torch.zeros(shape), kept(KEEP_BT), "pooler.dense")
    text = str(caught.value)
    assert text.startswith(
        f"inputs of layer pooler.dense have shape {shape}: not one row for each of the (2, 3) tokens; "
    )
    assert "eva.exclude_modules" in text and "prepare_layer_inputs_fn" in text


def minibatch(**changes):
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
        "labels": torch.tensor([[-100, 6, 7, -100], [-100, -100, 10, 11]]),
    }
    return {key: value for key, value in (inputs | changes).items() if value is not None}


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(
    ("use_label_mask", "labels", "mask_value", "expected"),
    [
        (True, True, -100, [1, 2, 6, 7]),
        (False, True, -100, [0, 1, 2, 4, 5, 6, 7]),
        (True, False, -100, [0, 1, 2, 4, 5, 6, 7]),
        (True, True, 6, [0, 2, 4, 5, 6, 7]),
    ],
)
def test_padding_and_masked_tokens_are_left_out(use_label_mask, labels, mask_value, expected, layout):
    forward = TokenForward(Trunk(nn.Identity()), CPU, use_label_mask, mask_value, layout)
    batch = minibatch() if labels else minibatch(labels=None)
    x_BTD = torch.arange(2 * 4 * 2.0).view(2, 4, 2)
    prepared = forward.prepare(batch)
    real_BT = batch["attention_mask"].bool()
    seen_BTD = x_BTD if layout is Layout.padded else x_BTD[real_BT][None]
    assert torch.equal(forward.select(prepared)((seen_BTD,), "q"), x_BTD.view(8, 2)[expected])
    assert forward.counts(prepared) == (sum(i < 4 for i in expected), sum(i >= 4 for i in expected))


def test_a_minibatch_is_laid_out_as_the_layout_says():
    batch = minibatch()
    keep_BT = batch["attention_mask"].bool()
    padded = place(batch, keep_BT, Layout.padded, CPU)
    assert padded.inputs.keys() == {"input_ids", "attention_mask"} and padded.lengths is None
    assert (padded.shape, padded.counts) == ((2, 4), (3, 4)) and padded.kept_N.tolist() == [0, 1, 2, 4, 5, 6, 7]
    packed = place(batch, keep_BT, Layout.packed, CPU)
    assert packed.inputs.keys() == {"input_ids", "position_ids"}
    assert packed.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert (packed.shape, packed.counts, packed.lengths, packed.kept_N) == ((1, 7), (3, 4), (3, 4), None)
    segmented = place(batch, keep_BT, Layout.segments, CPU)
    assert segmented.inputs["attention_mask"].tolist() == [[1] * 7]
    assert all(torch.equal(segmented.inputs[key], value) for key, value in packed.inputs.items())
    assert torch.equal(batch["input_ids"], minibatch()["input_ids"]) and "labels" in batch


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"labels": None}, True),
        ({"labels": None, "attention_mask": None}, True),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])}, True),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])}, False),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])}, False),
        ({"attention_mask": torch.zeros(2, 4).long()}, False),
        ({"attention_mask": torch.ones(2, 1, 4, 4)}, False),
        ({"token_type_ids": torch.zeros(2, 4).long()}, False),
        ({"position_ids": torch.arange(4).expand(2, 4)}, False),
        ({"input_ids": None, "inputs_embeds": torch.zeros(2, 4, 8)}, False),
        ({"input_ids": [[5, 6, 7, 0], [8, 9, 10, 11]]}, False),
    ],
)
def test_only_token_ids_with_padding_at_the_right_are_right_padded(changes, expected):
    assert is_right_padded(minibatch(**changes)) is expected


def test_without_a_mask_every_token_is_real():
    assert real_tokens(minibatch(attention_mask=None)).tolist() == [[True] * 4] * 2
    assert real_tokens(minibatch()).tolist() == [[True, True, True, False], [True] * 4]


def test_the_jobs_forward_runs_the_trunk_without_labels_or_cache():
    model, seen = make("llama").model, {}
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    forward = TokenForward(Trunk(model), CPU, True, -100)
    prepared = forward.prepare(minibatch())
    with torch.no_grad(), collect_rows(model, ["layers.1.mlp.up_proj"], forward.select(prepared)) as rows:
        forward.run(prepared)
    assert seen.keys() == {"input_ids", "attention_mask", "use_cache"} and seen["use_cache"] is False
    (rows_TD,) = rows["layers.1.mlp.up_proj"]
    assert rows_TD.shape == (4, llama_config().hidden_size) and torch.isfinite(rows_TD).all()


def test_a_forward_may_be_cut_unless_accelerate_moves_weights_around_it():
    model = make("llama")
    assert find_trunk(model, ["model.layers.0.mlp.up_proj"]).may_cut
    model.model.layers[1]._hf_hook = object()
    trunk = find_trunk(model, ["model.layers.0.mlp.up_proj"])
    assert not trunk.may_cut and not TokenForward(trunk, CPU, True, -100).may_cut


def test_the_smallest_module_that_holds_every_tap_runs():
    model = make("llama")
    assert find_trunk(model, ["model.layers.0.self_attn.q_proj"]).module is model.model
    assert find_trunk(model, ["model.layers.0.self_attn.q_proj", "lm_head"]).module is model
    assert find_trunk(model.model, ["layers.0.self_attn.q_proj"]).module is model.model


def test_the_trunk_of_a_wrapped_model_is_the_models_own(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = make("llama")
    base = model.model
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert find_trunk(wrapped, ["base_model.model.model.layers.0.self_attn.q_proj"]).module is base


def test_head_loss_and_cache_never_run():
    model, calls = make("llama"), []
    model.lm_head.register_forward_pre_hook(lambda *_: calls.append("head"))
    trunk = find_trunk(model, ["model.layers.0.self_attn.q_proj"])
    with torch.no_grad():
        trunk.run(minibatch())
        find_trunk(model, ["lm_head"]).run(minibatch())
    assert calls == ["head"]


class Strict(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.seen = nn.Linear(2, 2), None

    def forward(self, x, scale=1.0):
        self.seen = (x, scale)
        return self.dense(x * scale)


def test_inputs_that_the_trunk_does_not_know_are_dropped():
    model = Strict()
    x = torch.ones(1, 2)
    find_trunk(model, ["dense"]).run({"x": x, "scale": 2.0, "labels": x, "idx": x})
    assert model.seen[0] is x and model.seen[1] == 2.0


def test_an_encoder_decoder_runs_whole_and_keeps_its_labels():
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    trunk = find_trunk(model, ["decoder.block.0.layer.0.SelfAttention.q"])
    assert trunk.module is model and trunk.drops == frozenset()
    with (
        torch.no_grad(),
        collect_rows(
            model, ["decoder.block.0.layer.0.SelfAttention.q"], lambda arguments, name: arguments[0].flatten(0, 1)
        ) as rows,
    ):
        trunk.run({"input_ids": torch.tensor([[4, 5, 6]]), "labels": torch.tensor([[7, 8]])})
    assert rows["decoder.block.0.layer.0.SelfAttention.q"][0].shape == (2, 16)


META = torch.device("meta")


@pytest.mark.parametrize(
    ("value", "tensors_of"),
    [
        (torch.ones(2), lambda v: [v]),
        ([torch.ones(1), (torch.ones(2),)], lambda v: [v[0], v[1][0]]),
        (Pair(torch.ones(1), {"a": torch.ones(2)}), lambda v: [v.first, v.second["a"]]),
        ({"a": torch.ones(1), "b": {"c": [torch.ones(2)]}}, lambda v: [v["a"], v["b"]["c"][0]]),
        (UserDict(a=torch.ones(1)), lambda v: [v["a"]]),
        (BatchEncoding({"input_ids": torch.ones(1, 2)}), lambda v: [v["input_ids"]]),
    ],
)
def test_every_tensor_moves_and_the_shape_of_things_stays(value, tensors_of):
    moved = move_to_device(value, META)
    assert [t.device for t in tensors_of(moved)] == [META] * len(tensors_of(value))
    if not isinstance(value, UserDict) or isinstance(value, BatchEncoding):
        assert type(moved) is type(value)


def test_what_is_no_tensor_stays():
    assert move_to_device(("text", 3, None, [1.5]), META) == ("text", 3, None, [1.5])


def test_the_callers_own_containers_are_not_changed():
    value = {"a": [torch.ones(1)]}
    move_to_device(value, META)
    assert value["a"][0].device.type == "cpu"


def test_inputs_go_where_the_first_real_parameter_lies():
    assert input_device(make("llama")) == torch.device("cpu")
    assert input_device(nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))) == torch.device("cpu")
    assert input_device(make("llama", "meta")) is None
    assert input_device(nn.Identity()) is None
