"""`data.max_length` against tables of positions: how much room there is, whatever offset the table has."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    BertConfig,
    BioGptConfig,
    EsmConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    MPNetConfig,
    NystromformerConfig,
    OpenAIGPTConfig,
    OPTConfig,
    RobertaConfig,
)

from eva_dist.config import Task
from eva_dist.errors import ConfigError
from eva_dist.modeling.load import Architecture
from eva_dist.modeling.positions import check_length

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
}
OPT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "ffn_dim": 48}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 66}
CONFIGS = {
    "roberta": (lambda: RobertaConfig(**SMALL, pad_token_id=1), 64),
    "mpnet": (lambda: MPNetConfig(**SMALL), 64),
    "esm": (lambda: EsmConfig(**SMALL, pad_token_id=1, position_embedding_type="absolute"), 64),
    "bert": (lambda: BertConfig(**SMALL), 66),
    "nystromformer": (lambda: NystromformerConfig(**SMALL, num_landmarks=11, segment_means_seq_len=66), 66),
    "opt": (lambda: OPTConfig(**OPT, max_position_embeddings=66, word_embed_proj_dim=32), 66),
    "biogpt": (lambda: BioGptConfig(**SMALL), 66),
    "gpt2": (lambda: GPT2Config(**GPT), 66),
    "openai-gpt": (lambda: OpenAIGPTConfig(**GPT), 66),
    "gptj": (lambda: GPTJConfig(**GPT, rotary_dim=4), 66),
    "gpt_neo": (
        lambda: GPTNeoConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=1,
            num_heads=4,
            attention_types=[[["global"], 1]],
            max_position_embeddings=66,
        ),
        66,
    ),
}


def architecture(config) -> Architecture:
    torch.manual_seed(0)
    return Architecture(config, Task.FEATURE_EXTRACTION, AutoModel.from_config(config).eval())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_room_that_is_named_is_the_room_there_is(name):
    make, room = CONFIGS[name]
    model = architecture(make())

    def forward(length):
        ids = torch.full((1, length), 5)
        with torch.no_grad():
            model.skeleton(input_ids=ids, attention_mask=torch.ones_like(ids))

    check_length(model, room)
    forward(room)
    with pytest.raises(
        ConfigError, match=rf"^data\.max_length={room + 1} must be <= {room}, .*; use data\.max_length={room}$"
    ):
        check_length(model, room + 1)
    with pytest.raises((IndexError, RuntimeError)):
        forward(room + 1)


def test_a_model_without_a_table_has_room_for_anything():
    small = {key: value for key, value in SMALL.items() if key != "max_position_embeddings"}
    check_length(architecture(LlamaConfig(**small, max_position_embeddings=8)), 4096)


def test_the_places_of_an_image_s_patches_are_none_of_a_text_s():
    from test_heads import llava

    config = llava()
    check_length(Architecture(config, Task.CAUSAL_LM, AutoModelForImageTextToText.from_config(config)), 4096)


def test_what_is_said_names_the_table_where_the_config_s_number_is_not_the_room():
    with pytest.raises(ConfigError) as caught:
        check_length(architecture(CONFIGS["roberta"][0]()), 66)
    assert str(caught.value) == (
        "data.max_length=66 must be <= 64, the positions that the model's embeddings.position_embeddings has room for; "
        "use data.max_length=64"
    )
    with pytest.raises(ConfigError) as caught:
        check_length(architecture(CONFIGS["gpt2"][0]()), 512)
    assert str(caught.value) == (
        "data.max_length=512 must be <= 66, the model's max_position_embeddings; use data.max_length=66"
    )
