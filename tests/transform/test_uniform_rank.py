"""Exported adapters against the original in PEFT itself: outputs with a B that is not zero, and steps of training."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from eva_dist.artifact.restore import restore_artifact
from eva_dist.errors import ConfigError, IntegrityError
from eva_dist.transform.uniform_rank import fixed, padded, read_adapter

ZERO = "model.layers.1.self_attn.o_proj"
TOKENS = torch.arange(24).reshape(2, 12)


def files_of(built, trained=True):
    """The config and tensors of an artifact's adapter, with a B as training would leave it."""
    config = json.loads((built.folder / "adapter_config.json").read_text())
    tensors = load_file(built.folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    if trained:
        for key in [key for key in tensors if ".lora_B." in key]:
            tensors[key] = torch.randn(tensors[key].shape, generator=generator) * 0.1
    return config, tensors


def model_of(base, folder, config, tensors, trainable=False):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return PeftModel.from_pretrained(base, folder, is_trainable=trainable)


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def bare(built):
    return {
        name: (layer["in_features"], layer["out_features"])
        for name, layer in built.manifest["layers"].items()
        if layer["rank"] == 0
    }


@pytest.fixture
def fresh(base_folder):
    from transformers import LlamaForCausalLM

    return lambda: LlamaForCausalLM.from_pretrained(base_folder)


@pytest.mark.parametrize("rank", [None, 32])
@pytest.mark.parametrize("adjust", [True, False])
def test_padded_gives_the_outputs_of_the_original(build, fresh, tmp_path, rank, adjust):
    built = build(adjust_scaling_factors=adjust)
    config, tensors = files_of(built)
    assert len({tensor.shape[0] for key, tensor in tensors.items() if ".lora_A." in key}) > 2
    exported = padded(read_adapter(config, tensors), rank, bare(built))
    original = logits(model_of(fresh(), tmp_path / "original", config, tensors))
    uniform = model_of(fresh(), tmp_path / "uniform", exported.config, exported.tensors)
    assert (original - logits(fresh())).abs().max() > 1e-2  # the adapter does something
    torch.testing.assert_close(logits(uniform), original, atol=1e-6, rtol=0)
    largest = built.manifest["largest_rank"]
    assert exported.rank == (rank or largest) > 4
    assert (exported.config["rank_pattern"], exported.config["alpha_pattern"]) == ({}, {})
    assert exported.config["r"] == exported.rank
    assert exported.config["lora_alpha"] / exported.rank == pytest.approx(exported.scale)
    ranks = {tensor.shape[".lora_B." in key] for key, tensor in exported.tensors.items()}
    assert ranks == {exported.rank}
    # r=6 of down_proj has a scale of its own; without adjusted alphas, every rank has
    assert exported.folded and all(name.endswith("down_proj") for name in exported.folded) == adjust


def test_a_layer_of_rank_0_gets_zeros(built, fresh, tmp_path):
    config, tensors = files_of(built)
    assert [*bare(built)] == [ZERO] and ZERO not in config["target_modules"]
    exported = padded(read_adapter(config, tensors), None, bare(built))
    assert exported.added == (ZERO,)
    assert ZERO in exported.config["target_modules"]
    for half, shape in (("A", (exported.rank, 32)), ("B", (32, exported.rank))):
        tensor = exported.tensors[f"base_model.model.{ZERO}.lora_{half}.weight"]
        assert tensor.shape == shape and not tensor.any()


def test_padded_trains_as_the_original_does(build, fresh, tmp_path):
    built = build(rank_pattern={})  # one scale in all layers
    config, tensors = files_of(built, trained=False)
    exported = padded(read_adapter(config, tensors), 16, bare(built))
    assert exported.folded == () and exported.scale == built.eva.lora_alpha / built.eva.r
    after = []
    for name, of_one in (("original", (config, tensors)), ("uniform", (exported.config, exported.tensors))):
        model = model_of(fresh(), tmp_path / name, *of_one, trainable=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(TOKENS, labels=TOKENS).loss.backward()
            optimizer.step()
        after.append(logits(model))
    assert (after[0] - logits(fresh())).abs().max() > 1e-2
    torch.testing.assert_close(after[1], after[0], atol=1e-5, rtol=0)


def test_folded_scales_keep_the_gradient_of_b_at_the_start(build, fresh, tmp_path):
    built = build(adjust_scaling_factors=False)
    config, tensors = files_of(built, trained=False)
    exported = padded(read_adapter(config, tensors))
    assert len(exported.folded) > 5
    gradients = []
    for name, of_one in (("original", (config, tensors)), ("uniform", (exported.config, exported.tensors))):
        model = model_of(fresh(), tmp_path / name, *of_one, trainable=True)
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if "lora_B" in key})
    for key, original in gradients[0].items():
        uniform = gradients[1][key]
        assert original.any()
        torch.testing.assert_close(uniform[:, : original.shape[1]], original)
        assert not uniform[:, original.shape[1] :].any()


class TestFixed:
    def test_every_layer_has_its_leading_components(self, built, fresh, tmp_path):
        stored = restore_artifact(built.folder)
        config, _ = files_of(built)
        exported = fixed(stored, config, 3)
        assert len(exported.tensors) == 2 * built.manifest["layers_total"]
        group_of = {name: group.index for group in stored.result.state.plan.groups for name in group.members}
        for name in built.manifest["layers"]:
            a_RD = exported.tensors[f"base_model.model.{name}.lora_A.weight"]
            v_KD = stored.result.components[group_of[name]].v_KD[:3]
            folded = 4 / 6 if name.endswith("down_proj") else 1.0  # its r, and so its scale, is another one
            torch.testing.assert_close(a_RD, v_KD * folded)
        assert (exported.config["r"], exported.config["lora_alpha"]) == (3, 6)  # 8 / 4 * 3
        model = model_of(fresh(), tmp_path / "fixed", exported.config, exported.tensors)
        torch.testing.assert_close(logits(model), logits(fresh()), atol=1e-6, rtol=0)

    def test_whitened_as_the_artifact_is(self, build):
        built = build(whiten=True)
        config, tensors = files_of(built)
        exported = fixed(restore_artifact(built.folder), config, 2)
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        assert torch.equal(exported.tensors[name], tensors[name][:2])

    def test_alpha_without_adjusted_scales_is_that_of_the_settings(self, build):
        built = build(adjust_scaling_factors=False)
        exported = fixed(restore_artifact(built.folder), files_of(built)[0], 3)
        assert (exported.config["lora_alpha"], exported.folded) == (8, ())

    def test_more_components_than_are_stored_are_refused(self, built):
        with pytest.raises(ConfigError, match=r"--rank fixed:9 must be at most 8: .* 8 components are stored; use"):
            fixed(restore_artifact(built.folder), files_of(built)[0], 9)


class TestReading:
    def test_padding_cuts_nothing(self, built):
        adapter = read_adapter(*files_of(built))
        largest = built.manifest["largest_rank"]
        with pytest.raises(ConfigError, match=rf"--rank pad:2 must be at least {largest}, the largest"):
            padded(adapter, 2)

    def test_rslora_s_scale_divides_by_the_root(self, built):
        config, tensors = files_of(built)
        adapter = read_adapter({**config, "use_rslora": True, "alpha_pattern": {}}, tensors)
        layer = adapter.layers["model.layers.0.self_attn.q_proj"]
        assert layer.scale == pytest.approx(8 / layer.rank**0.5)
        assert padded(adapter).config["use_rslora"] is False

    def test_other_dtypes_and_tensors_pass_through(self, built):
        config, tensors = files_of(built)
        head = torch.ones(3, 32)
        halved = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        exported = padded(read_adapter(config, {**halved, "base_model.model.score.weight": head}), 16, bare(built))
        assert torch.equal(exported.tensors.pop("base_model.model.score.weight"), head)
        assert {tensor.dtype for tensor in exported.tensors.values()} == {torch.bfloat16}

    def test_what_is_no_pair_is_refused(self, built):
        config, tensors = files_of(built)
        lone = {key: tensor for key, tensor in tensors.items() if "layers.0.self_attn.q_proj.lora_B" not in key}
        with pytest.raises(IntegrityError, match=r"A and B of model\.layers\.0\.self_attn\.q_proj do not fit"):
            read_adapter(config, lone)
        with pytest.raises(ConfigError, match="must be A or B of a linear layer"):
            read_adapter(config, {**tensors, "base_model.model.embed.lora_embedding_A": torch.ones(2, 9)})
        with pytest.raises(ConfigError, match="peft_type=IA3 must be LORA"):
            read_adapter({**config, "peft_type": "IA3"}, tensors)
        with pytest.raises(ConfigError, match="no layer of LoRA"):
            padded(replace(read_adapter(config, tensors), layers={}))
