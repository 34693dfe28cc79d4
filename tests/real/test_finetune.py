"""Training goes on from our artifact: PEFT takes a few steps and the loss falls."""

import dataclasses
import time

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from eva_dist.config import ArtifactConfig, ClusterConfig, Config, DataConfig, EvaConfig, ModelConfig, StoreConfig
from eva_dist.run.prepare import prepare
from eva_dist.run.sweep import precompute
from tests.gang_processes import without_ray
from tests.several_processes import SeveralProcesses

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder(smollm2_folder, docstrings_file, tmp_path_factory):
    """Folder of an artifact for the first two blocks of SmolLM2, computed on two workers."""
    config = Config(
        model=ModelConfig(name_or_path=str(smollm2_folder), config_overrides={"num_hidden_layers": 2}),
        data=DataConfig(path=str(docstrings_file), max_length=128, step_size=8),
        eva=EvaConfig(r=8, rho=2.0, tau=0.9, lora_alpha=16, target_modules="all-linear"),
        cluster=ClusterConfig(num_workers=2, timeout_s=120.0, threads_per_worker=1),
        store=StoreConfig(url=str(tmp_path_factory.mktemp("store"))),
        artifact=ArtifactConfig(repo_id="team/cut"),
    )
    with without_ray(SeveralProcesses):
        outcome = precompute(prepare(config), time.perf_counter())
    assert outcome.status == "done"
    assert dataclasses.asdict(outcome)["layers_converged"] == 14
    return outcome.url.removeprefix("file://")


def test_loss_falls(folder, smollm2_folder, texts):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smollm2_folder, num_hidden_layers=2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    batch = dict(tokenizer(texts[:8], return_tensors="pt", padding=True, truncation=True, max_length=64))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        before = base(**batch)
        model = PeftModel.from_pretrained(base, folder, is_trainable=True)
        assert torch.equal(model(**batch).logits, before.logits)  # B is 0
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trainable)
    optimizer = torch.optim.AdamW(trainable.values(), lr=5e-3)
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(before.loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(later < earlier for earlier, later in zip(losses[:4], losses[1:5], strict=True))
