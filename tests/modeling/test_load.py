"""Loading: what a folder holds, what part of it runs, what identifies it, and what is refused."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import llama_config, make
from tokenizers import Tokenizer, models
from transformers import (
    BertModel,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    ViTConfig,
)

from eva_dist.config import Dtype, ModelConfig, Task
from eva_dist.errors import ConfigError
from eva_dist.modeling.load import (
    describe_model,
    describe_tokenizer,
    load_model,
    load_tokenizer,
    read_architecture,
)

CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path):
    """Save a tiny model by name and return its settings."""

    def save(name: str, folder: str = "model", seed: int = 0, **settings) -> ModelConfig:
        make(name, seed=seed).save_pretrained(tmp_path / folder)
        return ModelConfig(name_or_path=str(tmp_path / folder), **settings)

    return save


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        ("llama", Task.CAUSAL_LM, "LlamaForCausalLM"),
        ("gpt2", Task.CAUSAL_LM, "GPT2LMHeadModel"),
        ("llama trunk", Task.FEATURE_EXTRACTION, "LlamaModel"),
        ("bert", Task.FEATURE_EXTRACTION, "BertModel"),
        ("bert for masks", Task.FEATURE_EXTRACTION, "BertModel"),
        ("bert for sequences", Task.SEQ_CLS, "BertForSequenceClassification"),
        ("bert for tokens", Task.TOKEN_CLS, "BertForTokenClassification"),
        ("bert for questions", Task.QUESTION_ANS, "BertForQuestionAnswering"),
    ],
)
def test_the_task_is_read_from_the_architecture_and_the_skeleton_has_no_weights(saved, name, task, kind):
    architecture = read_architecture(saved(name))
    assert architecture.task is task
    assert type(architecture.skeleton).__name__ == kind
    assert all(parameter.is_meta for parameter in architecture.skeleton.parameters())


def test_a_task_that_was_set_wins(saved):
    architecture = read_architecture(saved("llama", task=Task.FEATURE_EXTRACTION))
    assert type(architecture.skeleton) is LlamaModel and architecture.task is Task.FEATURE_EXTRACTION


@pytest.mark.parametrize(
    ("name", "layers", "prefix"),
    [
        ("llama", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"], "model."),
        ("gpt2", ["transformer.h.0.attn.c_attn"], "transformer."),
        ("bert", ["encoder.layer.0.attention.self.query"], ""),
        ("llama trunk", ["layers.0.self_attn.q_proj"], ""),
        ("llama", ["model.layers.0.self_attn.q_proj", "lm_head"], ""),
        ("bert for sequences", ["bert.encoder.layer.0.attention.self.query"], "bert."),
        ("bert for sequences", ["bert.encoder.layer.0.attention.self.query", "classifier"], ""),
    ],
)
def test_the_trunk_runs_unless_a_target_lies_outside(saved, name, layers, prefix):
    settings = saved(name)
    architecture = read_architecture(settings)
    assert architecture.prefix(layers) == prefix
    model = load_model(settings, architecture.task, prefix, CPU)
    for layer in layers:
        assert isinstance(model.get_submodule(layer.removeprefix(prefix)), torch.nn.Module)
    assert hasattr(model, "lm_head") == (name == "llama" and not prefix)


def test_weights_arrive_ready_for_forwards_in_the_dtype_asked_for(saved, caplog):
    settings = saved("llama", dtype=Dtype.bfloat16)
    with caplog.at_level(logging.WARNING):
        model = load_model(settings, Task.CAUSAL_LM, "model.", CPU)
    expected = make("llama").model.state_dict()
    assert {name: p.dtype for name, p in model.named_parameters()} == dict.fromkeys(
        dict(model.named_parameters()), torch.bfloat16
    )
    assert all(torch.equal(value, expected[name].bfloat16()) for name, value in model.named_parameters())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert caplog.records == []


def test_config_overrides_reach_the_skeleton_and_the_model(saved):
    settings = saved("llama", config_overrides={"num_hidden_layers": 1})
    assert len(read_architecture(settings).skeleton.model.layers) == 1
    assert len(load_model(settings, Task.CAUSAL_LM, "model.", CPU).layers) == 1


def test_weights_that_are_missing_are_named_in_a_warning(saved, caplog):
    settings = saved("llama", config_overrides={"num_hidden_layers": 3})
    with caplog.at_level(logging.WARNING, logger="eva_dist"):
        load_model(settings, Task.CAUSAL_LM, "model.", CPU)
    (record,) = caplog.records
    assert f"model.name_or_path={settings.name_or_path} has no weights for " in record.message
    assert "layers.2.self_attn.q_proj.weight" in record.message and "layers.1." not in record.message


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_path_without_a_model_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    path = tmp_path / folder
    with pytest.raises(ConfigError) as caught:
        read_architecture(ModelConfig(name_or_path=str(path)))
    text = str(caught.value)
    assert text.startswith(f"model.name_or_path={path} is neither a model folder nor a hub id that can be read (")
    assert text.endswith("); check the path, model.revision and model.gguf_file") and "\n" not in text


def with_adapter(settings: ModelConfig, base: str = "org/base") -> Path:
    folder = Path(settings.name_or_path)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    return folder


@pytest.mark.parametrize("given", [{}, {"task": Task.FEATURE_EXTRACTION}, {"gguf_file": "model.gguf"}])
def test_a_base_model_with_an_adapter_in_its_folder_is_refused(saved, given):
    settings = saved("llama", **given)
    folder = with_adapter(settings)
    with pytest.raises(ConfigError) as caught:
        read_architecture(settings)
    assert str(caught.value) == (
        f"model.name_or_path={folder} holds a base model and an adapter: separate them or merge "
        "(`merge_and_unload`, then `save_pretrained`)"
    )


def test_an_adapter_alone_is_refused_with_the_name_of_its_base(saved):
    settings = saved("llama")
    (with_adapter(settings) / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"^model\.name_or_path=.* holds an adapter alone; name its base model, org/bas"
    ):
        read_architecture(settings)


def test_an_adapter_in_a_repository_of_the_hub_is_refused(saved, monkeypatch):
    folder = with_adapter(saved("llama"))
    asked = {}

    def cached(name, file, **options):
        asked[name] = options["revision"]
        return str(folder / file)

    monkeypatch.setattr("transformers.utils.peft_utils.cached_file", cached)
    with pytest.raises(ConfigError, match=r"^model\.name_or_path=org/both holds a base model and an adapter: separate"):
        read_architecture(ModelConfig(name_or_path="org/both", revision="v2"))
    assert asked == {"org/both": "v2"}


@pytest.mark.parametrize("keyword", ["adapter_kwargs", "config", "state_dict", "subfolder"])
def test_overrides_that_load_something_else_are_refused(saved, keyword):
    with pytest.raises(
        ConfigError, match=rf"^model\.config_overrides\.{keyword}=x is no setting of a model's config; set"
    ):
        read_architecture(saved("llama", config_overrides={keyword: "x"}))


def test_a_folder_without_weights_is_refused(saved, tmp_path):
    settings = saved("llama")
    architecture = read_architecture(settings)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ConfigError) as caught:
        describe_model(settings, architecture)
    assert str(caught.value) == (
        f"model.name_or_path={settings.name_or_path} holds no weights (*.safetensors, *.bin, *.gguf); "
        "save the model there, or set model.gguf_file"
    )


def test_a_task_that_the_architecture_does_not_have_is_refused(tmp_path):
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="^model.task=CAUSAL_LM does not fit vit .*; one of: CAUSAL_LM, FEATURE_EXTR"):
        read_architecture(ModelConfig(name_or_path=str(tmp_path), task=Task.CAUSAL_LM))


def test_an_encoder_decoder_is_refused_with_the_way_that_takes_it(tmp_path):
    T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"is an encoder-decoder \(t5\), which the job cannot .*get_eva_state_dict"):
        read_architecture(ModelConfig(name_or_path=str(tmp_path)))


def described(settings: ModelConfig) -> dict:
    return describe_model(settings, read_architecture(settings))


def test_the_same_weights_are_the_same_model_wherever_they_lie(saved, tmp_path):
    settings = saved("llama")
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes.txt").write_text("not weights")
    elsewhere = ModelConfig(name_or_path=str(tmp_path / "elsewhere"))
    assert described(settings) == described(elsewhere)
    assert described(settings).keys() == {"config_sha256", "weights", "dtype", "task"}


def test_other_weights_config_dtype_or_task_are_another_model(saved):
    reference = described(saved("llama"))
    other_weights = described(saved("llama", "seed", seed=1))
    assert {key for key in reference if reference[key] != other_weights[key]} == {"weights"}
    other_config = described(saved("llama", config_overrides={"rms_norm_eps": 1e-3}))
    assert {key for key in reference if reference[key] != other_config[key]} == {"config_sha256"}
    other_dtype = described(saved("llama", dtype=Dtype.float16))
    assert {key for key in reference if reference[key] != other_dtype[key]} == {"dtype"}
    other_task = described(saved("llama", task=Task.FEATURE_EXTRACTION))
    assert {key for key in reference if reference[key] != other_task[key]} >= {"task"}


def test_what_a_config_says_of_its_origin_does_not_count(saved, tmp_path):
    settings = saved("llama", dtype=Dtype.float32)
    reference, file = described(settings), tmp_path / "model" / "config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"transformers_version": "5.0", "dtype": "float16", "_name_or_path": "x"}))
    assert described(settings) == reference


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_auto_is_the_dtype_that_the_weights_are_stored_in(tmp_path, stored):
    LlamaForCausalLM(llama_config()).to(stored).save_pretrained(tmp_path)
    automatic = described(ModelConfig(name_or_path=str(tmp_path)))
    assert automatic["dtype"] == str(stored).removeprefix("torch.")
    spelt_out = described(ModelConfig(name_or_path=str(tmp_path), dtype=Dtype(automatic["dtype"])))
    assert automatic == spelt_out
    assert load_model(ModelConfig(name_or_path=str(tmp_path)), Task.CAUSAL_LM, "model.", CPU).dtype == stored


def test_safetensors_come_before_other_weights_and_a_gguf_file_only_when_named(saved, tmp_path):
    settings = saved("llama")
    reference = described(settings)
    (tmp_path / "model" / "training_args.bin").write_bytes(b"not weights")
    assert described(settings) == reference
    (tmp_path / "model" / "quantised.gguf").write_bytes(b"something")
    assert described(settings) == reference
    named = ModelConfig(name_or_path=settings.name_or_path, gguf_file="quantised.gguf")
    assert describe_model(named, read_architecture(settings))["weights"] != reference["weights"]


def tokenizer(words=("a", "b", "c"), template=None) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(words)}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")))
    made.chat_template = template
    return made


def test_a_tokenizer_is_identified_by_vocabulary_and_template(saved, tmp_path):
    settings = saved("llama")
    tokenizer().save_pretrained(tmp_path / "model")
    reference = describe_tokenizer(load_tokenizer(settings))
    assert reference["sha256"] == describe_tokenizer(tokenizer())["sha256"]
    others = [tokenizer(("a", "c", "b")), tokenizer(("a", "b", "c", "d")), tokenizer(template="{{ messages }}")]
    assert len({reference["sha256"], *(describe_tokenizer(other)["sha256"] for other in others)}) == 4


def test_a_model_without_a_tokenizer_is_refused(saved):
    settings = saved("llama")
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(settings)
    text = str(caught.value)
    assert text.startswith(f"model.name_or_path={settings.name_or_path} holds no tokenizer that can be read (")
    assert text.endswith("); save the tokenizer beside the model") and "\n" not in text


def test_a_masked_language_model_is_loaded_as_its_encoder_and_a_pooler_made_up_is_named(saved, caplog):
    settings = saved("bert for masks")
    with caplog.at_level(logging.WARNING, logger="eva_dist"):
        model = load_model(settings, read_architecture(settings).task, "", CPU)
    assert type(model) is BertModel
    expected = make("bert for masks").bert.encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.encoder.named_parameters())
    guessed, record = caplog.records
    assert "is BertForMaskedLM: its layers are named as in AutoModel" in guessed.message
    assert "set model.task if it is trained with one" in guessed.message
    assert "pooler.dense.bias, pooler.dense.weight" in record.message and "encoder" not in record.message
