"""What is in the files of an artifact, and that PEFT takes them."""

import hashlib
import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from eva_dist.artifact.load import load_eva_state_dict
from eva_dist.artifact.write import build_artifact
from eva_dist.calibration.controller import GroupState
from eva_dist.config import Budget
from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError
from eva_dist.numerics.components import Components
from tests.quick_figures import drawn_figures

# peft 0.21 reads what transformers 5.23 deprecates, for every adapter alike.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ZERO = "model.layers.1.self_attn.o_proj"
DETERMINISTIC = [
    "eva_state_dict.safetensors",
    "adapter_model.safetensors",
    "components.safetensors",
    "spectrum.parquet",
    "convergence.parquet",
    "adapter_config.json",
    "ranks.png",
    "convergence.png",
    "spectra.png",
]


def peft_itself(base, built) -> PeftModel:
    """Load the state dict the other way: PEFT works out ranks and alphas."""
    eva = built.eva
    config = LoraConfig(
        r=eva.r,
        lora_alpha=eva.lora_alpha,
        target_modules=eva.target_modules,
        rank_pattern=dict(eva.rank_pattern),
        task_type="CAUSAL_LM",
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=eva.rho, tau=eva.tau, adjust_scaling_factors=eva.adjust_scaling_factors),
    )
    model = get_peft_model(base, config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(model, eva_state_dict=load_eva_state_dict(built.folder))
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(10)[None]).logits


def test_the_fixture_holds_the_cases_that_matter(built):
    ranks = built.result.state.ranks
    assert ranks[ZERO] == 0
    assert ranks["model.layers.0.self_attn.q_proj"] > built.eva.r
    assert 0 < min(rank for rank in ranks.values() if rank) < built.eva.r
    assert built.eva.r in ranks.values()
    assert sum(ranks.values()) == built.result.state.plan.rank_budget


def test_adapter_loads_silently_and_changes_no_logit(base, built):
    expected = logits(base)
    model = PeftModel.from_pretrained(base, built.folder, is_trainable=True)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
    parameters = dict(model.named_parameters())
    for name, rank in built.result.state.ranks.items():
        key = f"base_model.model.{name}.lora_A.default.weight"
        if rank == 0:
            assert key not in parameters
            continue
        assert parameters[key].requires_grad
        torch.testing.assert_close(parameters[key], load_file(built.folder / "eva_state_dict.safetensors")[name])


@pytest.mark.parametrize("adjust", [True, False])
def test_patterns_are_what_peft_writes(base, build, tmp_path, adjust):
    built = build(adjust_scaling_factors=adjust)
    peft_itself(base, built).save_pretrained(tmp_path)
    theirs, ours = (json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path, built.folder))
    assert ours["rank_pattern"] == theirs["rank_pattern"] != {}
    assert ours["alpha_pattern"] == theirs["alpha_pattern"]
    assert bool(ours["alpha_pattern"]) is adjust
    assert {k for k in ours if ours[k] != theirs[k]} <= {"target_modules", "exclude_modules", "base_model_name_or_path"}
    assert sorted(ours["target_modules"]) == sorted(theirs["target_modules"])


def test_both_ways_of_loading_give_the_same_adapter(base_folder, built):
    ready = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), built.folder)
    initialised = peft_itself(LlamaForCausalLM.from_pretrained(base_folder), built)
    ours, theirs = (
        {n: (m.r, m.lora_alpha, m.scaling) for n, m in model.named_modules() if hasattr(m, "lora_A")}
        for model in (ready, initialised)
    )
    assert ours == theirs and len(ours) == 13
    weights, reference = ready.state_dict(), initialised.state_dict()
    assert weights.keys() == reference.keys()
    assert all(torch.equal(weights[key], reference[key]) for key in weights)


@pytest.mark.parametrize("budget", Budget)
@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_trainable_parameters_are_those_that_peft_counts(base, build, budget, rho):
    """The manifest's, and within the budget where it is of parameters: less than one component of it is left."""
    built = build(budget=budget, rho=rho, rank_pattern={})
    model = PeftModel.from_pretrained(base, built.folder, is_trainable=True)
    trainable, _ = model.get_nb_trainable_parameters()
    manifest = built.manifest
    assert manifest["budget"] == budget.value and manifest["trainable_parameters"] == trainable
    uniform = LoraConfig(r=4, target_modules=built.eva.target_modules, task_type="CAUSAL_LM")
    unadapted = LlamaForCausalLM(base.config)
    assert manifest["parameter_budget"] == get_peft_model(unadapted, uniform).get_nb_trainable_parameters()[0]
    if budget is Budget.params:
        assert 0 <= manifest["parameter_budget"] - trainable < 32 + 16
    if rho == 1.0:
        assert set(built.result.state.ranks.values()) == {4}


def test_a_parameter_budget_leaves_alpha_over_rank_where_it_was(base_folder, build):
    """Both ways of loading agree on ranks, alphas and scales; ranks are not those of a rank budget."""
    built = build(budget=Budget.params)
    state = built.result.state
    assert state.ranks != build().result.state.ranks and sum(state.ranks.values()) != state.plan.rank_budget
    found = []
    for load in (lambda base: PeftModel.from_pretrained(base, built.folder), lambda base: peft_itself(base, built)):
        modules = load(LlamaForCausalLM.from_pretrained(base_folder)).named_modules()
        found.append({n: (m.r["default"], m.scaling["default"]) for n, m in modules if hasattr(m, "lora_A")})
    assert found[0] == found[1]
    kept = {f"base_model.model.{name}": rank for name, rank in state.ranks.items() if rank}
    assert {name: rank for name, (rank, _) in found[0].items()} == kept
    assert {name.rpartition(".")[2] == "down_proj": scale for name, (_, scale) in found[0].items()} == {
        False: pytest.approx(8 / 4),
        True: pytest.approx(8 / 6),
    }


def test_state_dict_holds_the_components_contiguous_in_float32(built):
    with safe_open(built.folder / "eva_state_dict.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    tensors = load_file(built.folder / "eva_state_dict.safetensors")
    state = built.result.state
    assert tensors.keys() == state.ranks.keys()
    assert tensors[ZERO].shape == (0, 32)
    for group in state.plan.groups:
        for name in group.members:
            expected = built.result.components[group.index].v_KD[: state.ranks[name]]
            assert tensors[name].dtype == torch.float32 and tensors[name].is_contiguous()
            torch.testing.assert_close(tensors[name], expected.float())


def test_whitened_rows_are_divided_once_for_every_member(build):
    whitened, plain = build(whiten=True), build(whiten=False)
    ours, unit = load_eva_state_dict(whitened.folder), load_eva_state_dict(plain.folder)
    group = whitened.result.state.plan.groups[0]
    assert len(group.members) == 3
    for name in group.members:
        key = "base_model.model." + name
        sigma_K = whitened.result.components[group.index].singular_values_K[: len(ours[key])]
        torch.testing.assert_close(ours[key].double(), unit[key].double() / sigma_K.sqrt()[:, None])


def test_a_group_that_saw_no_token_gets_rank_0(built, tmp_path):
    """As `on_max_steps=accept` leaves an expert that nothing was routed to."""
    state = built.result.state
    group = state.plan.groups[2]
    blind = replace(
        state,
        ranks={**state.ranks, **dict.fromkeys(group.members, 0)},
        groups=tuple(GroupState(skipped=9) if g.index == 2 else state.groups[g.index] for g in state.plan.groups),
    )
    nothing = Components(torch.empty(0, group.in_features), torch.empty(0), torch.empty(0))
    result = replace(built.result, state=blind, components={**built.result.components, 2: nothing})
    manifest = build_artifact(tmp_path, result, built.eva, built.provenance)
    assert manifest["status"] == "not_converged"
    assert {manifest["layers"][name]["skipped_steps"] for name in group.members} == {9}
    state_dict = load_eva_state_dict(tmp_path)
    assert all(state_dict[f"base_model.model.{name}"].shape == (0, group.in_features) for name in group.members)


def test_rebuild_gives_the_same_bytes(built, tmp_path):
    with drawn_figures():
        build_artifact(tmp_path, built.result, built.eva, built.provenance)
    for name in DETERMINISTIC:
        assert (tmp_path / name).read_bytes() == (built.folder / name).read_bytes(), name


def test_spectrum_table(built):
    table = pq.read_table(built.folder / "spectrum.parquet")
    assert table.column_names == [
        "layer",
        "component",
        "singular_value",
        "explained_variance_ratio",
        "cosine",
        "step_converged",
        "kept",
    ]
    rows = table.to_pylist()
    state = built.result.state
    assert len(rows) == sum(len(group.members) * group.n_components for group in state.plan.groups)
    q_proj = [row for row in rows if row["layer"] == "model.layers.0.self_attn.q_proj"]
    components = built.result.components[0]
    assert [row["component"] for row in q_proj] == list(range(8))
    assert [row["explained_variance_ratio"] for row in q_proj] == components.explained_variance_ratio_K.tolist()
    assert [row["singular_value"] for row in q_proj] == components.singular_values_K.tolist()
    assert {row["cosine"] for row in q_proj} == {0.95} and {row["step_converged"] for row in q_proj} == {2}
    for name, rank in state.ranks.items():
        assert sum(row["kept"] for row in rows if row["layer"] == name) == rank


def test_spectrum_of_a_layer_that_still_turns_has_no_step(unconverged):
    rows = pq.read_table(unconverged.folder / "spectrum.parquet").to_pylist()
    steps = {row["layer"].rpartition(".")[2]: row["step_converged"] for row in rows if ".0." in row["layer"]}
    assert steps["gate_proj"] is None and steps["up_proj"] is None and steps["q_proj"] == 2


def test_convergence_table_is_the_history(unconverged):
    rows = pq.read_table(unconverged.folder / "convergence.parquet").to_pylist()
    history = unconverged.result.state.history
    assert len(rows) == len(history)
    last = rows[-1]
    assert (last["step"], last["input_group"]) == (3, "model.layers.0.mlp.gate_proj")
    assert (last["rows_seen"], last["components_converged"], last["seconds"]) == (160, 2, 0.75)
    assert last["rank"] == unconverged.result.state.group_rank(history[-1].group)


def test_manifest_names_every_file_with_its_sha256(built):
    text = (built.folder / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest == built.manifest
    assert text == json.dumps(manifest, sort_keys=True, indent=2) + "\n"
    assert manifest["files"].keys() == {path.name for path in built.folder.iterdir()} - {"manifest.json"}
    for name, described in manifest["files"].items():
        content = (built.folder / name).read_bytes()
        assert described == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_manifest_says_how_the_pass_went(built):
    manifest = built.manifest
    assert manifest["status"] == "done" and manifest["stop"] == "converged" and manifest["method"] == "eva"
    assert (manifest["steps"], manifest["tokens"], manifest["r"]) == (3, 120, 4)
    assert (manifest["budget"], manifest["rank_budget"]) == ("ranks", 12 * 4 + 2 * 6)
    assert manifest["largest_rank"] == max(built.result.state.ranks.values())
    assert manifest["seconds"] == 3.5 and manifest["seconds_by_phase"].keys() == {"forward", "svd"}
    assert manifest["fingerprint"] == built.provenance.fingerprint and manifest["world_size"] == 2
    assert manifest["layers"][ZERO] == {
        "rank": 0,
        **{"in_features": 32, "out_features": 32, "r": 4, "max_rank": 8, "transposed": False},
        "input_group": ZERO,
        "stop_reason": "converged",
        "updates": 1,
        "skipped_steps": 0,
    }
    assert manifest["layers"]["model.layers.0.self_attn.v_proj"]["input_group"].endswith("0.self_attn.q_proj")


def test_manifest_says_what_has_not_converged_and_by_how_much(unconverged):
    manifest = unconverged.manifest
    assert manifest["status"] == "not_converged" and manifest["stop"] == "max_steps"
    up = manifest["layers"]["model.layers.0.mlp.up_proj"]
    assert up["stop_reason"] == "max_steps" and up["components_below_tau"] == 1 and up["lowest_cosine"] == 0.25
    assert manifest["layers_total"] - manifest["layers_converged"] == 2


def test_each_load_is_whole_though_peft_pops(base, built):
    first = load_eva_state_dict(built.folder)
    expected = {"base_model.model." + name for name in built.result.state.ranks}
    peft_itself(base, built)
    assert first.keys() == expected
    first.popitem()
    assert load_eva_state_dict(built.folder.as_uri()).keys() == expected
    assert load_eva_state_dict(str(built.folder), prefix="").keys() == built.result.state.ranks.keys()


@pytest.fixture
def copied(built, tmp_path):
    return shutil.copytree(built.folder, tmp_path / "with space")


def test_file_url_with_escapes(copied):
    assert "%20" in copied.as_uri()
    assert len(load_eva_state_dict(copied.as_uri())) == 14


def test_one_changed_byte_is_found(copied):
    path = copied / "eva_state_dict.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"eva_state_dict\.safetensors has sha256 .*manifest says"):
        load_eva_state_dict(copied)


def test_missing_tensor_file(copied):
    (copied / "eva_state_dict.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"eva_state_dict\.safetensors is missing"):
        load_eva_state_dict(copied)


@pytest.mark.parametrize("text", ["{", "[]", '{"files": {}}'])
def test_manifest_that_is_none(copied, text):
    (copied / "manifest.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        load_eva_state_dict(copied)


def test_nothing_there(tmp_path, built):
    for folder in (tmp_path, tmp_path / "no", built.folder / "README.md"):
        with pytest.raises(ArtifactNotFoundError, match="no artifact at"):
            load_eva_state_dict(folder)


@pytest.mark.parametrize("url", ["ftp://host/team/name", "s3://bucket/x", "file://host/x"])
def test_other_urls_are_refused(url):
    with pytest.raises(ConfigError, match=f"source={url}.*file:///folder"):
        load_eva_state_dict(url)
