"""`solver=incremental` is PEFT's function, component by component; ties inside an input group may fall otherwise."""

import pytest
import torch
from peft.tuners.lora.eva import get_eva_state_dict as peft_get_eva_state_dict

from .conftest import build, cosines, eva, lora, token_minibatches

LLAMA = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
BERT = [["query", "key", "value"], ["attention.output.dense"], ["intermediate.dense"]]
GPT2 = [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]]


def groups_of(names, kinds):
    """Names by block and input: `[[q, k, v of block 0], ...]`."""
    groups = {}
    for name in names:
        block = next(part for part in name.split(".") if part.isdigit())
        inputs = next(i for i, kind in enumerate(kinds) if any(name.endswith(f".{k}") for k in kind))
        groups.setdefault((block, inputs), []).append(name)
    return list(groups.values())


def assert_parity(ours, peft, kinds):
    assert set(ours) == set(peft)
    compared = []
    for group in groups_of(ours, kinds):
        assert sorted(len(ours[name]) for name in group) == sorted(len(peft[name]) for name in group), group
        longest = [max((state[name] for name in group), key=len) for state in (ours, peft)]
        compared.append(cosines(*longest))
    together = torch.cat(compared)
    assert len(together) > len(compared)
    assert together.min() >= 0.999
    assert together.mean() >= 0.9999


@pytest.mark.parametrize("rho", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("labels", [False, True])
def test_tiny_models(kind, rho, labels):
    kinds = {"llama": LLAMA, "gpt2": GPT2, "bert": BERT}[kind]
    config = lora([name for names in kinds for name in names], rho=rho)
    data = token_minibatches(padding=True, labels=labels, batch=16)
    forward = {"forward_fn": lambda model, x: model(x["input_ids"], attention_mask=x["attention_mask"])}
    peft = peft_get_eva_state_dict(build(kind), data, config, show_progress_bar=False, **forward)
    assert_parity(eva(build(kind), data, config, solver="incremental"), peft, kinds)


@pytest.mark.parametrize("pattern", [{"k_proj": 2, "down_proj": 6}, {"q_proj": 6}, {"layers.0.self_attn.v_proj": 1}])
def test_rank_pattern_of_a_tiny_model(pattern):
    config = lora([name for names in LLAMA for name in names], rank_pattern=pattern)
    data = token_minibatches(batch=16)
    peft = peft_get_eva_state_dict(build("llama"), data, config, show_progress_bar=False)
    ours = eva(build("llama"), data, config, solver="incremental")
    assert_parity(ours, peft, LLAMA)
    changed = sum(r - 4 for name in ours for end, r in pattern.items() if name.endswith(f".{end}"))
    assert sum(len(rows) for rows in ours.values()) == 14 * 4 + changed


@pytest.mark.real
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"rho": 1.0}, marks=pytest.mark.slow),
        {"rho": 2.0},
        pytest.param(
            {"rho": 2.0, "rank_pattern": {"query": 4, "layer.1.intermediate.dense": 12}}, marks=pytest.mark.slow
        ),
        pytest.param({"rho": 2.0, "use_label_mask": False}, marks=pytest.mark.slow),
    ],
    ids=["rho 1", "rho 2", "rank_pattern", "no label mask"],
)
def test_real_model_and_text(settings, real_model, real_minibatches):
    config = lora([name for names in BERT for name in names], r=8, tau=0.9, **settings)
    peft = peft_get_eva_state_dict(
        real_model,
        real_minibatches,
        config,
        forward_fn=lambda model, x: model(x["input_ids"], attention_mask=x["attention_mask"]),
        show_progress_bar=False,
    )
    assert len(peft) == 10
    assert_parity(eva(real_model, real_minibatches, config, solver="incremental"), peft, BERT)
