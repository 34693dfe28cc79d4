"""`eva-dist export` and `pull` end in folders that PEFT itself loads."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from eva_dist.errors import ConfigError
from eva_dist.transform.rank_choice import parse_rank_choice
from tests.commands import run_command
from tests.made_artifacts import publish

TOKENS = torch.arange(24).reshape(2, 12)


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture
def load(base_folder):
    return lambda folder: PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), folder)


@pytest.fixture
def run(capsys, built, tmp_path, monkeypatch):
    """Run with the artifact in a store, as team/tiny@v1."""
    publish(str(tmp_path / "store"), built.folder, "team/tiny@v1")
    monkeypatch.setenv("EVA_DIST_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(capsys, *arguments)


@pytest.fixture
def trained(built, tmp_path):
    """A folder as `save_pretrained` leaves it after training: an adapter, no artifact."""
    folder = tmp_path / "trained"
    folder.mkdir()
    shutil.copy(built.folder / "adapter_config.json", folder)
    tensors = load_file(built.folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    save_file(
        {k: torch.randn(t.shape, generator=generator) * 0.1 if ".lora_B." in k else t for k, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def test_a_pulled_folder_is_a_peft_model(run, load, built):
    assert run("pull", "team/tiny@v1", "here").code == 0
    model = load("here")
    ranks = {name: m.r["default"] for name, m in model.named_modules() if hasattr(m, "lora_A") and m.r}
    expected = {name: layer["rank"] for name, layer in built.manifest["layers"].items() if layer["rank"]}
    assert {name.removeprefix("base_model.model."): rank for name, rank in ranks.items()} == expected


@pytest.mark.parametrize("rank", ["pad", "pad:16", "mixed"])
def test_a_trained_adapter_keeps_its_outputs(run, load, trained, built, rank):
    ran = run("export", "trained", "out", "--rank", rank, "--json")
    assert ran.code == 0
    torch.testing.assert_close(logits(load("out")), logits(load("trained")), atol=1e-6, rtol=0)
    largest = built.manifest["largest_rank"]
    assert ran.json["largest_rank"] == (16 if rank == "pad:16" else largest)
    assert ran.json["fingerprint"] is None
    assert sorted(path.name for path in (trained.parent / "out").iterdir()) == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors"),
    ]


@pytest.mark.parametrize(("rank", "r", "said"), [("pad", 7, "theirs is zero"), ("fixed:3", 3, "first 3 components")])
def test_an_artifact_at_one_rank(run, load, built, rank, r, said, tmp_path):
    ran = run("export", "team/tiny@v1", "out", "--rank", rank)
    assert (ran.code, ran.out) == (0, "out\n") and f"rank {r} in every layer: r={r}" in ran.err
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (r, {}, {})
    model = load("out")
    assert {m.r["default"] for m in model.modules() if hasattr(m, "lora_A") and m.r} == {r}
    card = (tmp_path / "out/README.md").read_text()
    assert built.manifest["fingerprint"] in card and "It is no artifact" in card and said in card
    again = run("export", "team/tiny@v1", "out")
    assert again.code == 2 and "FOLDER=out is there and not empty" in again.err


def test_what_cannot_be_exported_leaves_nothing(run, trained, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    for words, code, said in (
        (["team/tiny@v1", "out", "--rank", "fixed:99"], 2, "--rank fixed:99 must be at most 8"),
        (["team/tiny@v1", "out", "--rank", "pad:2"], 2, "must be at least"),
        (["trained", "out", "--rank", "fixed:2"], 2, "needs an artifact"),
        (["team/none", "out"], 1, "team/tiny"),
        (["store", "out"], 1, "manifest.json"),
    ):
        ran = run("export", *words)
        assert (ran.code, ran.out) == (code, "") and said in ran.err
    (trained / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    ran = run("export", "trained", "out", "--rank", "pad")
    assert ran.code == 1 and "is no safetensors" in ran.err
    (trained / "adapter_config.json").write_text("[]")
    assert run("export", "trained", "out").code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("rank", ["mixed", "pad"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": ["LORA"]}, "peft_type=['LORA'] must be a text"),
        ({"peft_type": None}, "peft_type=None must be a text"),
        ({"r": "8"}, "r='8' must be a whole number in 1..1048576"),
        ({"r": 0}, "r=0 must be a whole number"),
        ({"lora_alpha": "16"}, "lora_alpha='16' must be a number above 0"),
        ({"lora_alpha": 0}, "lora_alpha=0 must be a number above 0"),
        ({"lora_alpha": 10**400}, "lora_alpha=1000"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan must be a number"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern=['q_proj'] must be a mapping"),
        ({"rank_pattern": {"q_proj": [3]}}, "rank_pattern.'q_proj'=[3] must be a whole number"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern.'q_proj'=None must be a number above 0"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern has the key '('"),
        ({"use_rslora": "no"}, "use_rslora='no' must be true or false"),
        ({"target_modules": {"q": 1}}, "target_modules={'q': 1} must be a text or a list of texts"),
        ({"target_modules": [["q"]]}, "target_modules=[['q']] must be a text or a list of texts"),
    ],
)
def test_a_config_that_is_none_is_told_by_its_setting(run, trained, tmp_path, change, said, rank):
    path = trained / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    ran = run("export", "trained", "out", "--rank", rank)
    assert (ran.code, ran.out) == (1, "") and f"adapter_config.json of trained: {said}" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_nested_without_end_or_lacks_its_alpha(run, trained):
    path = trained / "adapter_config.json"
    whole = json.loads(path.read_text())
    path.write_text("[" * 100_000)
    ran = run("export", "trained", "out")
    assert ran.code == 1 and "adapter_config.json of trained is not JSON" in ran.err
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != "lora_alpha"}))
    ran = run("export", "trained", "out", "--rank", "pad")
    assert ran.code == 1 and "adapter_config.json has no lora_alpha" in ran.err


@pytest.mark.parametrize("wrong", ["8", "pad:", "pad:0", "fixed", "fixed:-1", "mixed:4", "", "max"])
def test_a_rank_that_is_none(wrong):
    with pytest.raises(ConfigError, match="must be mixed, pad, pad:N or fixed:N") as refused:
        parse_rank_choice(wrong)
    assert ("did you mean pad:8 or fixed:8?" in str(refused.value)) == (wrong == "8")
