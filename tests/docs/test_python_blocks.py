"""Every Python block on README and pages runs as it stands, on a tiny model and its artifact."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.docs.blocks import blocks

PYTHON = [block for block in blocks() if block.language == "python"]
MODEL, ARTIFACT = "HuggingFaceTB/SmolLM2-135M-Instruct", "/srv/eva/team/smollm2/rho2.0-tau0.99"


@pytest.fixture
def given(tiny):
    """What a block takes for granted: `model` and `dataloader`."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 64, (8, 24), generator=generator) for _ in range(12)]
    minibatches = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i} for i in ids]
    return {"model": AutoModelForCausalLM.from_pretrained(tiny.model), "dataloader": minibatches}


def test_pages_have_python_blocks():
    assert {"README.md", "docs/pages/how-to/load.md", "docs/pages/how-to/in-process.md"} <= {b.page for b in PYTHON}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_block_runs(block, tiny, given):
    text = block.text.replace(MODEL, str(tiny.model)).replace(ARTIFACT, str(tiny.artifact))
    text = text.replace("team/name", str(tiny.artifact))
    exec(compile(text, str(block), "exec"), given)
    if "PeftModel.from_pretrained" in text:
        assert any(parameter.requires_grad for parameter in given["model"].parameters()) or "is_trainable" not in text
    if "initialize_lora_eva_weights(" in text:
        a = {n: p for n, p in given["peft_model"].named_parameters() if "lora_A" in n}
        assert a and all(torch.isfinite(p).all() and p.norm() > 0 for p in a.values() if p.numel())
