"""`solver=incremental` against PEFT on real weights and real text; MiniLM: tests/run/in_process/test_parity.py."""

import copy
from collections import defaultdict

import pytest
import torch
from peft import EvaConfig, LoraConfig
from peft.tuners.lora.eva import get_eva_state_dict as peft_get_eva_state_dict
from transformers import AutoModel, AutoModelForCausalLM

import eva_dist

pytestmark = pytest.mark.real

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BERT_TARGETS = ["query", "key", "value", "output.dense", "intermediate.dense"]
SETTINGS = {
    "rho2": ({}, {"rho": 2.0}),
    "rho1": ({}, {"rho": 1.0}),
    "rank_pattern": (
        {"rank_pattern": {"v_proj": 12, "value": 12, "layer.1.*output.dense": 4, "down_proj": 4}},
        {"rho": 1.5},
    ),
    "label_mask": ({}, {"rho": 2.0, "use_label_mask": True}),
}


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)], ids="{} blocks".format)
def llama(request, smollm2_folder):
    return AutoModelForCausalLM.from_pretrained(smollm2_folder, num_hidden_layers=request.param)


@pytest.fixture(scope="module")
def bert(minilm_folder):
    return AutoModel.from_pretrained(minilm_folder, num_hidden_layers=3)


@pytest.fixture(scope="module")
def llama_minibatches(smollm2_folder, texts, make_minibatches):
    return make_minibatches(smollm2_folder, texts, 40, max_length=64)


@pytest.fixture(scope="module")
def bert_minibatches(minilm_folder, texts, make_minibatches):
    return make_minibatches(minilm_folder, texts, 40, max_length=64)


def with_labels(minibatches):
    """Mask the first third of each text, and the padding."""
    out = []
    for minibatch in minibatches:
        labels = minibatch["input_ids"].clone()
        labels[:, : labels.shape[1] // 3] = -100
        labels[minibatch["attention_mask"] == 0] = -100
        out.append({**minibatch, "labels": labels})
    return out


def run_both(model, minibatches, targets, setting, tau, whiten=False):
    lora, eva = SETTINGS[setting]
    config = LoraConfig(
        r=8,
        target_modules=targets,
        init_lora_weights="eva",
        eva_config=EvaConfig(**{"tau": tau, "whiten": whiten, **eva}),
        **lora,
    )
    if setting == "label_mask":
        minibatches = with_labels(minibatches)
    # PEFT would hand labels to an encoder that takes none; the mask is what is compared
    trunk_only = lambda m, inputs: m(**{k: v for k, v in inputs.items() if k != "labels"})  # noqa: E731
    peft = peft_get_eva_state_dict(
        copy.deepcopy(model), minibatches, copy.deepcopy(config), forward_fn=trunk_only, show_progress_bar=False
    )
    ours = eva_dist.get_eva_state_dict(model, minibatches, config, solver="incremental", show_progress_bar=False)
    return peft, ours


def input_groups(names):
    """Group layer names by the input that they share, by what is known of the two architectures."""
    groups = defaultdict(list)
    for name in names:
        block, _, kind = name.rpartition(".")
        shared = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gu", "up_proj": "gu"}
        shared |= {"query": "qkv", "key": "qkv", "value": "qkv"}
        groups[block, shared.get(kind, kind)].append(name)
    return groups.values()


def check_same(peft, ours):
    assert set(peft) == set(ours)
    for members in input_groups(peft):
        assert sorted(len(peft[n]) for n in members) == sorted(len(ours[n]) for n in members), members
    cosines = torch.cat(
        [
            torch.cosine_similarity(peft[n][:k].double(), ours[n][:k].double()).abs()
            for n in peft
            if (k := min(len(peft[n]), len(ours[n])))
        ]
    )
    assert cosines.min() >= 0.999
    assert cosines.mean() >= 0.9999


@pytest.mark.parametrize(
    "setting", [pytest.param(one, marks=[] if one in ("rho2", "label_mask") else pytest.mark.slow) for one in SETTINGS]
)
def test_smollm2_equals_peft(llama, llama_minibatches, setting):
    check_same(*run_both(llama, llama_minibatches, LLAMA_TARGETS, setting, tau=0.9))


@pytest.mark.slow
def test_the_whole_of_smollm2_equals_peft(smollm2_folder, texts, make_minibatches):
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    minibatches = make_minibatches(smollm2_folder, texts, 100)
    check_same(*run_both(model, minibatches, LLAMA_TARGETS, "rho2", tau=0.95))


@pytest.mark.slow
def test_whiten_is_what_peft_intends(bert, bert_minibatches):
    """PEFT divides, in place, a view that the members of an input group share: three members, three times."""
    plain, ours_plain = run_both(bert, bert_minibatches, BERT_TARGETS, "rho1", tau=0.9)
    peft, ours = run_both(bert, bert_minibatches, BERT_TARGETS, "rho1", tau=0.9, whiten=True)
    check_same(plain, ours_plain)
    right_in_peft = wrong_in_peft = 0
    for members in input_groups(ours):
        scales = {n: ours[n].norm(dim=1) for n in members if len(ours[n])}
        for name, scale in scales.items():
            # whitened rows are the plain rows, each divided by one positive number, the same for all members
            assert torch.allclose(ours[name], ours_plain[name] * scale[:, None], atol=1e-7)
            first = next(iter(scales.values()))
            k = min(len(scale), len(first))
            assert torch.allclose(scale[:k], first[:k], rtol=1e-5)
            agrees = torch.allclose(peft[name].norm(dim=1)[:k].float(), scale[:k], rtol=1e-3)
            right_in_peft += agrees
            wrong_in_peft += not agrees
    # in each of the three blocks: query, key and value
    assert wrong_in_peft == 9
    assert right_in_peft == len(ours) - 9
