"""Which class a model is trained in: read from its config, never guessed in silence."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    BertConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2AudioConfig,
    Qwen2VLConfig,
)

from eva_dist.config import ModelConfig, Task
from eva_dist.errors import ConfigError, LayerError
from eva_dist.modeling.heads import auto_class, find_task
from eva_dist.modeling.load import load_model, read_architecture
from eva_dist.run.prepare import prepare
from tests.own_run import own_run

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def qwen2_vl() -> Qwen2VLConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    marks = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    return Qwen2VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, **marks)


def llava() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4
    )
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=5)


@pytest.fixture
def saved(tmp_path, tiny_model):
    """Save a tiny model of several towers beside a tokenizer; return its folder."""

    def save(config):
        torch.manual_seed(0)
        folder = tmp_path / config.model_type
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model / name, folder / name)
        return folder

    return save


@pytest.mark.parametrize("make", [qwen2_vl, llava])
def test_an_artifact_of_a_vision_language_model_loads_into_the_class_that_people_train(
    saved, configure, make, no_figures
):
    folder = saved(make())
    targets = r"model\.language_model\..*\.(q_proj|v_proj)"
    eva = {"r": 2, "rho": 1.0, "tau": 0.5, "target_modules": targets}
    run = own_run(configure(model={"name_or_path": str(folder)}, eva=eva, cluster={"num_workers": 1}))
    base = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(base).__name__ in AutoConfig.from_pretrained(folder).architectures
    model = PeftModel.from_pretrained(base, run.url.removeprefix("file://"))
    loaded = [name for name, p in model.named_parameters() if "lora_A" in name and p.abs().sum() > 0]
    assert len(loaded) == 4 and all("base_model.model.model.language_model.layers." in name for name in loaded)
    card = Path(run.url.removeprefix("file://"), "README.md").read_text()
    assert "base = AutoModelForImageTextToText.from_pretrained(" in card


def test_names_are_those_of_the_class_and_the_task_is_peft_s(saved, configure):
    eva = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    run = prepare(configure(model={"name_or_path": str(saved(qwen2_vl()))}, eva=eva))
    assert run.task is Task.CAUSAL_LM and run.prefix == "" and run.model["auto_class"] == "AutoModelForImageTextToText"
    assert [layer.name for layer in run.targets.layers] == [
        f"model.language_model.layers.{block}.self_attn.{kind}" for block in (0, 1) for kind in ("q_proj", "v_proj")
    ]


def test_layers_that_text_does_not_reach_are_refused_with_what_leaves_them_out(saved, configure):
    model = {"name_or_path": str(saved(llava()))}
    with pytest.raises(LayerError) as caught:
        prepare(configure(model=model, eva={"r": 2, "target_modules": ["q_proj"]}))
    assert str(caught.value) == (
        "eva.target_modules names 2 layers that text does not reach, e.g. "
        "model.vision_tower.encoder.layers.0.self_attn.q_proj; leave them out with "
        "'eva.exclude_modules=model.vision_tower.*', or call eva_dist.get_eva_state_dict with images"
    )
    left = prepare(
        configure(model=model, eva={"r": 2, "target_modules": ["q_proj"], "exclude_modules": "model.vision_tower.*"})
    )
    assert len(left.targets.layers) == 2
    with pytest.raises(LayerError, match=r"leave them out with 'eva\.exclude_modules=model\.vision_tower\.\*\|model"):
        prepare(configure(model=model, eva={"r": 2, "target_modules": "all-linear"}))


def test_a_model_that_cannot_be_run_on_text_alone_is_refused(tmp_path, tiny_model, configure):
    from transformers import Blip2Config

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = Blip2Config(
        vision_config=small | {"image_size": 8, "patch_size": 4},
        qformer_config=small | {"vocab_size": 64, "encoder_hidden_size": 32},
        text_config={"model_type": "opt", "vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1}
        | {"num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    )
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.save_pretrained(tmp_path / "blip2")
    with pytest.raises(LayerError, match="Blip2ForConditionalGeneration cannot be run on text alone: it takes pixel_v"):
        prepare(configure(model={"name_or_path": str(tmp_path / "blip2")}, eva={"r": 2, "target_modules": ["q_proj"]}))


def of(model_type: str, *architectures: str, **more):
    return AutoConfig.for_model(model_type, architectures=list(architectures), **more)


@pytest.mark.parametrize(
    ("config", "task", "loader"),
    [
        (of("gemma3", "Gemma3ForConditionalGeneration"), Task.CAUSAL_LM, AutoModelForCausalLM),
        (of("llama4", "Llama4ForConditionalGeneration"), Task.CAUSAL_LM, AutoModelForImageTextToText),
        (of("llama4", "Llama4ForCausalLM"), Task.CAUSAL_LM, AutoModelForCausalLM),
        (
            Qwen2AudioConfig(architectures=["Qwen2AudioForConditionalGeneration"]),
            *(Task.CAUSAL_LM, AutoModelForMultimodalLM),
        ),
        (of("qwen2_vl"), Task.FEATURE_EXTRACTION, None),
        (of("qwen2_vl", "Qwen2VLModel"), Task.FEATURE_EXTRACTION, None),
    ],
    ids=lambda value: getattr(value, "architectures", None) and value.architectures[0],
)
def test_the_class_is_that_of_the_architecture(config, task, loader):
    assert find_task(Task.auto, config, "model") is task
    if loader is not None:
        assert auto_class(task, config) is loader


def test_a_task_that_was_set_finds_the_class_that_has_it():
    assert auto_class(Task.CAUSAL_LM, of("qwen2_vl")) is AutoModelForImageTextToText
    assert auto_class(Task.CAUSAL_LM, of("llama")) is AutoModelForCausalLM


def test_code_of_the_model_s_own_says_what_its_class_is_for():
    own = {"auto_map": {"AutoModel": "code.OddModel", "AutoModelForCausalLM": "code.OddLMHeadModel"}}
    config = of("llama", "OddLMHeadModel", **own)
    assert find_task(Task.auto, config, "model") is Task.CAUSAL_LM
    assert find_task(Task.auto, of("llama", "OddModel", **own), "model") is Task.FEATURE_EXTRACTION


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("bert", "BertForMultipleChoice"), ("bert", "BertForNextSentencePrediction"), ("llama", "OddForCausalLM")],
)
def test_a_head_that_is_not_known_is_refused(tmp_path, model_type, architecture):
    of(model_type, architecture).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_architecture(ModelConfig(name_or_path=str(tmp_path)))
    assert str(caught.value) == (
        f"model.task=auto: model.name_or_path={tmp_path} is {architecture} ({model_type}), a head that the job does "
        "not know, so it cannot tell what its layers are called in training; set model.task to one of: CAUSAL_LM, "
        "FEATURE_EXTRACTION, SEQ_CLS, TOKEN_CLS, QUESTION_ANS (FEATURE_EXTRACTION names layers as AutoModel does)"
    )
    assert read_architecture(ModelConfig(name_or_path=str(tmp_path), task=Task.FEATURE_EXTRACTION)).task


def test_a_config_without_an_architecture_is_its_base_model_with_a_warning(tmp_path, caplog):
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    assert read_architecture(ModelConfig(name_or_path=str(tmp_path))).task is Task.FEATURE_EXTRACTION
    assert "is of no architecture that its config names: its layers are named as in AutoModel" in caplog.text


def test_what_is_loaded_is_the_class_that_was_looked_at(saved):
    settings = ModelConfig(name_or_path=str(saved(qwen2_vl())))
    architecture = read_architecture(settings)
    loaded = load_model(settings, architecture.task, "", torch.device("cpu"))
    assert type(loaded) is type(architecture.skeleton)
    assert list(dict(loaded.named_modules())) == list(dict(architecture.skeleton.named_modules()))
