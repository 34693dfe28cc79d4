"""Layouts: what every layer receives is the same in each that a model gets, and one that would leak is refused."""

from dataclasses import replace

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from eva_dist.modeling.forward import TokenForward, Trunk, find_layout
from eva_dist.modeling.packing import Layout, agrees, attention_by_segment, can_segment, segments
from tests.collecting import collect_rows

PADDED, PACKED, SEGMENTS = Layout.padded, Layout.packed, Layout.segments
CPU = torch.device("cpu")
CHECKED, LONG = (30, 60, 7), (30, 100, 7, 64, 150)
"""Samples that the check sees, and those of a real minibatch: longer than its pieces, and in all than any model's most
positions. The windows below are of 64 tokens, longer than the pieces, or of 8."""

WIDTH = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DEPTH = {"num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {**WIDTH, **SPECIAL, **DEPTH, "num_key_value_heads": 2, "max_position_embeddings": 256}
ENCODER = {**WIDTH, **DEPTH, "max_position_embeddings": 256}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
GEMMA = {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8}
NEO = {
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": 256,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 64,
}
LLAMA4 = {"intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8, "no_rope_layers": [1, 0]}
EAGER = {"attn_implementation": "eager"}

MODELS = {
    "llama": (SEGMENTS, lambda: tf.LlamaModel(tf.LlamaConfig(**SIZES))),
    "llama, eager": (PACKED, lambda: tf.LlamaModel(tf.LlamaConfig(**SIZES, **EAGER))),
    "gpt2": (SEGMENTS, lambda: tf.GPT2Model(tf.GPT2Config(**GPT2))),
    "bert": (SEGMENTS, lambda: tf.BertModel(tf.BertConfig(**ENCODER))),
    "bert, eager": (PADDED, lambda: tf.BertModel(tf.BertConfig(**ENCODER, **EAGER))),  # finds no samples in positions
    "roberta": (PADDED, lambda: tf.RobertaModel(tf.RobertaConfig(**ENCODER))),  # its positions begin at 2
    "mistral": (SEGMENTS, lambda: tf.MistralModel(tf.MistralConfig(**SIZES, sliding_window=8))),
    "mistral, long window": (SEGMENTS, lambda: tf.MistralModel(tf.MistralConfig(**SIZES, sliding_window=64))),
    "mistral, eager": (PACKED, lambda: tf.MistralModel(tf.MistralConfig(**SIZES, sliding_window=64, **EAGER))),
    "gemma2": (PACKED, lambda: tf.Gemma2Model(tf.Gemma2Config(**SIZES, **GEMMA))),  # softcap: eager by default
    "gemma3": (SEGMENTS, lambda: tf.Gemma3TextModel(tf.Gemma3TextConfig(**SIZES, **GEMMA))),
    "qwen2": (SEGMENTS, lambda: tf.Qwen2Model(tf.Qwen2Config(**SIZES))),
    "qwen3": (SEGMENTS, lambda: tf.Qwen3Model(tf.Qwen3Config(**SIZES, head_dim=8))),
    "granite": (SEGMENTS, lambda: tf.GraniteModel(tf.GraniteConfig(**SIZES))),
    "mixtral": (SEGMENTS, lambda: tf.MixtralModel(tf.MixtralConfig(**SIZES, num_local_experts=4))),
    "bloom": (PADDED, lambda: tf.BloomModel(tf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))),
    "lfm2": (PADDED, lambda: tf.Lfm2Model(tf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]))),
    "mamba": (PADDED, lambda: tf.MambaModel(tf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))),
    # What depends on the length of the whole row shows in no short check: a mask of so many positions, a scale by row.
    "gpt neo": (None, lambda: tf.GPTNeoModel(tf.GPTNeoConfig(vocab_size=64, hidden_size=32, **NEO))),
    "llama4": (None, lambda: tf.Llama4TextModel(tf.Llama4TextConfig(**SIZES, **LLAMA4, floor_scale=128))),
}


def make(build, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return build().to(dtype).eval()


def samples(lengths, seed: int = 0) -> dict[str, Tensor]:
    """A right-padded minibatch of samples of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 64, (length,), generator=generator) for length in lengths]
    mask_BT = pad_sequence([torch.ones_like(ids_T) for ids_T in ids], batch_first=True)
    return {"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": mask_BT}


def layers_of(model: nn.Module) -> list[str]:
    kinds = (nn.Linear, tf.pytorch_utils.Conv1D)
    return [name for name, m in model.named_modules() if isinstance(m, kinds) and "pooler" not in name]


def forward_of(model: nn.Module) -> TokenForward:
    return TokenForward(Trunk(model), CPU, use_label_mask=False, label_mask_value=-100)


def rows(model: nn.Module, layout: Layout, minibatch) -> dict[str, Tensor]:
    """What every layer receives when a minibatch is forwarded in a layout."""
    forward = replace(forward_of(model), layout=layout)
    prepared = forward.prepare(minibatch)
    by_segment = attention_by_segment(model, layout is SEGMENTS)
    with torch.no_grad(), by_segment, collect_rows(model, layers_of(model), forward.select(prepared)) as found:
        forward.run(prepared)
    return {name: torch.cat(calls) for name, calls in found.items() if calls}


def layout_of(model: nn.Module) -> Layout:
    return find_layout(model, layers_of(model), forward_of(model), samples(CHECKED), row_tokens=sum(LONG))


def check_equal(model: nn.Module, layout: Layout, lengths=LONG, tolerance: float = 1e-5) -> None:
    minibatch = samples(lengths)
    expected, found = rows(model, PADDED, minibatch), rows(model, layout, minibatch)
    assert list(found) == list(expected) and len(expected) >= 6
    for name, rows_TD in expected.items():
        assert rows_TD.shape == (sum(lengths), rows_TD.shape[1]) and rows_TD.isfinite().all()
        assert (found[name] - rows_TD).norm() <= tolerance * rows_TD.norm(), name


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_receives_the_same_in_the_layout_that_a_model_gets(name):
    expected, build = MODELS[name]
    model = make(build)
    before = model.config.to_dict()
    layout = layout_of(model)
    assert expected in (None, layout)
    check_equal(model, layout)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("lengths", [(40,), (1, 1, 2), (20, 0, 30), (0, 5)])
@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
def test_single_short_and_empty_samples(name, lengths):
    check_equal(make(MODELS[name][1]), SEGMENTS, lengths)


@pytest.mark.parametrize(("name", "expected"), [("llama", SEGMENTS), ("mistral", SEGMENTS), ("lfm2", PADDED)])
def test_half_precision_rounds_but_does_not_leak(name, expected):
    model = make(MODELS[name][1], torch.bfloat16)
    assert layout_of(model) is expected
    check_equal(model, expected, tolerance=1e-2)


class Layers(nn.Module):
    """Not of transformers: an embedding, what `mix` makes of its rows, two layers."""

    def __init__(self, mix):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b = nn.Embedding(64, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.mix = mix

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        return self.b(self.a(self.mix(self.embed(input_ids), position_ids)).tanh())


def running_mean(x_BTD, position_ids):
    """Leaks from one sample into the next one of its row."""
    return x_BTD.cumsum(1) / torch.arange(1, x_BTD.shape[1] + 1)[:, None]


def by_row_index(x_BTD, position_ids):
    """Takes the place in the row for the position, whatever `position_ids` says."""
    return x_BTD * torch.arange(x_BTD.shape[1])[:, None].cos()


def refuse_positions(x_BTD, position_ids):
    if position_ids is not None:
        raise NotImplementedError("no positions, please")
    return x_BTD


def not_a_number(x_BTD, position_ids):
    return x_BTD if position_ids is None else x_BTD * float("nan")


def by_position(x_BTD, position_ids):
    position_ids = torch.arange(x_BTD.shape[1])[None] if position_ids is None else position_ids
    return x_BTD * position_ids[..., None].cos()


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (running_mean, PADDED),
        (by_row_index, PADDED),
        (refuse_positions, PADDED),
        (not_a_number, PADDED),
        (by_position, PACKED),
    ],
)
def test_a_model_of_ones_own_is_packed_only_if_it_keeps_samples_apart(mix, expected):
    model = Layers(mix)
    assert not can_segment(model)
    assert layout_of(model) is expected


def test_attention_that_leaks_between_samples_is_refused(monkeypatch):
    """As if the lengths were lost on the way: every token attends to all before it in its row."""
    model = make(MODELS["llama"][1])
    monkeypatch.setattr("eva_dist.modeling.forward.segments", lambda lengths: segments((sum(lengths),)))
    assert layout_of(model) is PACKED
    assert model.config._attn_implementation == "sdpa"


def test_the_model_has_its_own_attention_back_after_an_exception():
    model = make(MODELS["mistral"][1])
    before = model.config.to_dict()
    with pytest.raises(KeyError), attention_by_segment(model):
        assert model.config._attn_implementation != "sdpa" and not can_segment(model)
        raise KeyError
    assert model.config._attn_implementation == "sdpa" and can_segment(model)
    assert model.config.to_dict() == before
    broken = {"input_ids": torch.full((1, 9), 1000)}  # an IndexError in the middle of every check
    assert find_layout(model, layers_of(model), forward_of(model), broken, row_tokens=9) is PADDED
    assert model.config.to_dict() == before
    with attention_by_segment(model, wanted=False):
        assert model.config._attn_implementation == "sdpa"


def test_a_model_with_a_part_that_attends_in_another_way_is_left_alone():
    """A vision tower that is eager, beside a language model that is not."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = tf.CLIPVisionConfig(**tower, image_size=16, patch_size=4)
    config = tf.LlavaConfig(text_config=tf.LlamaConfig(**SIZES), vision_config=vision, image_token_index=63)
    attention = {"": "sdpa", "text_config": "sdpa", "vision_config": "eager"}
    model = tf.LlavaModel._from_config(config, attn_implementation=attention)
    assert can_segment(model.language_model) and not can_segment(model)


@pytest.mark.parametrize("name", ["llama", "mistral", "bert", "gpt2", "gemma3"])
def test_outside_of_segments_our_attention_is_sdpa(name):
    """Bit for bit, with a mask and without one: whoever forwards the model meanwhile sees no difference."""
    model = make(MODELS[name][1])
    for minibatch in (samples((30, 12)), {"input_ids": samples((30,))["input_ids"]}):
        with torch.no_grad():
            expected = model(**minibatch).last_hidden_state
            with attention_by_segment(model):
                assert torch.equal(model(**minibatch).last_hidden_state, expected)
                with segments((30,)), pytest.raises(ValueError, match="not one row of 30 tokens"):
                    model(input_ids=samples((20, 20))["input_ids"])
                assert torch.equal(model(**minibatch).last_hidden_state, expected)


def test_only_models_that_attend_by_sdpa_through_the_interface_can_segment():
    assert can_segment(make(MODELS["llama"][1])) and not can_segment(make(MODELS["llama, eager"][1]))
    assert not can_segment(make(MODELS["bloom"][1])) and not can_segment(nn.Linear(2, 2))


def test_a_layout_agrees_if_every_layer_receives_the_same_but_for_rounding():
    right = {"a": torch.eye(3), "b": torch.ones(2, 3)}
    rounded = {name: x * (1 + 1e-6) for name, x in right.items()}
    assert agrees(PACKED, {PADDED: right, PACKED: rounded}.__getitem__)
    wrong = (
        {"a": right["a"]},
        right | {"b": torch.ones(2, 3) * (1 + 1e-3)},
        right | {"b": torch.ones(3, 3)},
        right | {"b": torch.full((2, 3), float("nan"))},
    )
    assert not any(agrees(PACKED, {PADDED: right, PACKED: found}.__getitem__) for found in wrong)
    assert not agrees(PACKED, {PADDED: right}.__getitem__)  # a KeyError: the model does not know the layout


def test_a_layer_whose_inputs_are_all_zero_is_no_obstacle():
    zeros = {"a": torch.zeros(2, 3)}
    assert agrees(PACKED, lambda layout: zeros)
