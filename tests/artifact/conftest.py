"""A tiny Llama, and hand-made passes over it that end as a test wants them to."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from eva_dist.artifact.write import Provenance, build_artifact
from eva_dist.calibration.controller import GroupReport, PointResult, PointState, StepReport, advance, first_state
from eva_dist.config import Config, DataConfig, EvaConfig, ModelConfig
from eva_dist.hashing import fingerprint
from eva_dist.methods.eva import Eva
from eva_dist.numerics.components import Components
from eva_dist.plan import Layer, Plan, make_layer, make_plan
from tests.quick_figures import drawn_figures

EVA = EvaConfig(
    r=4,
    rho=2.0,
    tau=0.9,
    lora_alpha=8,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    rank_pattern={"down_proj": 6},
    max_steps=4,
)
# The variance that each input explains, by where its group's tap is; so small that it gets rank 0, or so large
# that it gets more than r.
SMALL, LARGE = "layers.1.self_attn.o_proj", "layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Built:
    folder: Path
    manifest: dict
    result: PointResult
    eva: EvaConfig
    provenance: Provenance


def llama_plan(base: nn.Module, eva: EvaConfig) -> Plan:
    layers = [
        make_layer(
            name,
            module.in_features,
            module.out_features,
            next((r for end, r in eva.rank_pattern.items() if name.endswith(end)), eva.r),
            eva.rho,
        )
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in eva.target_modules
    ]
    inputs: dict[str, list[str]] = {}
    for layer in layers:
        parent, _, kind = layer.name.rpartition(".")
        shared = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "mlp", "up_proj": "mlp"}.get(
            kind, kind
        )
        inputs.setdefault(f"{parent}.{shared}", []).append(layer.name)
    return make_plan(layers, list(inputs.values()), budget=eva.budget)


def make_pass(plan: Plan, eva: EvaConfig, cosine_by_step: list[float], turning: tuple[str, ...] = ()) -> PointResult:
    """Fold made-up reports into a state; `turning` are taps whose first component never settles."""
    components = {group.index: _components(group) for group in plan.groups}
    state: PointState = first_state(plan, Eva(eva.tau), max_steps=len(cosine_by_step) + 1)
    for cosine in [None, *cosine_by_step]:
        if state.stop:
            break
        reports = [
            GroupReport(index, 40, components[index].explained_variance_ratio_K, _cosines(plan, index, cosine, turning))
            for index in state.active
        ]
        state = advance(state, [StepReport(tuple(reports), 40, 0, {"forward": 0.5, "svd": 0.25})], 0.75)
    return PointResult(replace(state, pass_seconds=3.5), components)


def _cosines(plan, index, cosine, turning):
    if cosine is None:
        return None
    cosines_K = torch.full((plan.groups[index].n_components,), cosine, dtype=torch.float64)
    if plan.groups[index].tap in turning:
        cosines_K[0] = 0.25
    return cosines_K


def _components(group) -> Components:
    generator = torch.Generator().manual_seed(group.index)
    basis, _ = torch.linalg.qr(torch.randn(group.in_features, group.in_features, generator=generator))
    scale = 1e-4 if group.tap.endswith(SMALL) else 0.5 if group.tap.endswith(LARGE) else 0.03 * (1 + group.index)
    ratios_K = scale * 0.6 ** torch.arange(group.n_components, dtype=torch.float64)
    return Components(basis[:, : group.n_components].T, (1000 * ratios_K).sqrt(), ratios_K)


@pytest.fixture
def run_pass() -> Callable[..., PointResult]:
    return make_pass


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def base(base_folder) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(base_folder)


@pytest.fixture(scope="session")
def build(base_folder, tmp_path_factory):
    """Return a function that builds an artifact; `eva` changes settings, `turning` leaves taps unconverged."""
    base = LlamaForCausalLM.from_pretrained(base_folder)

    def _build(turning: tuple[str, ...] = (), **eva_changes) -> Built:
        eva = replace(EVA, **eva_changes)
        result = make_pass(llama_plan(base, eva), eva, [0.5, 0.95, 0.99], turning)
        folder = tmp_path_factory.mktemp("artifact")
        provenance = make_provenance(folder, base_folder, eva, result.state.plan)
        return Built(folder, build_artifact(folder, result, eva, provenance), result, eva, provenance)

    return _build


@pytest.fixture(scope="session")
def built(build) -> Built:
    """One converged artifact that tests only read."""
    with drawn_figures():
        return build()


@pytest.fixture(scope="session")
def unconverged(build) -> Built:
    with drawn_figures():
        return build(turning=("model.layers.0.mlp.gate_proj",))


def make_provenance(folder: Path, base_folder: Path, eva: EvaConfig, plan: Plan) -> Provenance:
    decisive = {
        "method": "eva",
        "eva": {key: getattr(eva, key) for key in ("r", "rho", "tau", "whiten", "lora_alpha", "max_steps")},
        "layers": [[layer.name, layer.r, layer.max_rank] for layer in plan.layers],
    }
    config = Config(ModelConfig(name_or_path=str(base_folder)), DataConfig(path="a|b.txt"), eva)
    return Provenance(
        fingerprint=fingerprint(decisive),
        decisive=decisive,
        config=json.loads(json.dumps(config.to_dict())),
        model={"id": str(base_folder), "revision": None, "task_type": "CAUSAL_LM", "dtype": "float32"},
        tokenizer={"sha256": "cd" * 32},
        data={"digest": "ef" * 32, "samples": 64},
        versions={"torch": torch.__version__},
        world_size=2,
        url=folder.as_uri(),
        repo_id="team/tiny",
        revision="rho2.0-tau0.9",
        created="2026-01-02T03:04:05+00:00",
    )


@pytest.fixture
def many_layers() -> dict[str, Layer]:
    """210 layers of 30 blocks, as SmolLM2 has them."""
    kinds = {f"self_attn.{k}_proj": 64 for k in "qkvo"} | {"mlp.gate_proj": 64, "mlp.up_proj": 64, "mlp.down_proj": 96}
    names = {f"model.layers.{i}.{kind}": dim for i in range(30) for kind, dim in kinds.items()}
    return {name: Layer(name, dim, 64, 16, 32) for name, dim in names.items()}
