"""A budget of parameters beside one of ranks: what each explains, on real weights and real text."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from eva_dist.artifact.write import build_artifact
from eva_dist.calibration.controller import PointResult, first_state
from eva_dist.calibration.engine import finish, run_pass
from eva_dist.calibration.pass_state import one_point
from eva_dist.config import ArtifactConfig, Budget, Config, DataConfig, EvaConfig, ModelConfig, OnMaxSteps, StoreConfig
from eva_dist.methods.eva import Eva
from eva_dist.numerics.allocation import allocate_parameters, allocate_ranks
from eva_dist.plan import Plan
from eva_dist.run.prepare import Prepared, prepare, provenance
from jobs.contenders import begin, session

pytestmark = [pytest.mark.real, pytest.mark.slow]

BLOCKS, STEPS, R = 3, 6, 8


@pytest.fixture(scope="module")
def found(smollm2_folder, docstrings_file, tmp_path_factory) -> dict[Budget, tuple[Prepared, PointResult]]:
    """Both budgets after the same steps: at tau = 1 no layer is frozen, so both know the same spectra."""
    return {
        budget: compute(smollm2_folder, docstrings_file, tmp_path_factory.mktemp("store"), budget) for budget in Budget
    }


def compute(model: Path, data: Path, store: Path, budget: Budget) -> tuple[Prepared, PointResult]:
    run = prepare(
        Config(
            model=ModelConfig(name_or_path=str(model), config_overrides={"num_hidden_layers": BLOCKS}),
            data=DataConfig(path=str(data), max_length=128, step_size=8),
            eva=EvaConfig(
                r=R,
                rho=2.0,
                tau=1.0,
                budget=budget,
                target_modules="all-linear",
                max_steps=STEPS,
                on_max_steps=OnMaxSteps.accept,
            ),
            store=StoreConfig(url=str(store)),
            artifact=ArtifactConfig(repo_id="tests/budget"),
        )
    )
    worker = session(run, 1)
    plan = begin(worker, run)
    first = one_point(first_state(plan, Eva(1.0), STEPS, accept=True))
    state = run_pass(first, lambda decision: [worker.step(decision)]).only()
    result = finish(state, worker.components())
    worker.leave()
    return run, result


def ratios_of(result: PointResult):
    group_of = {name: group.index for group in result.state.plan.groups for name in group.members}
    return {
        layer.name: result.components[group_of[layer.name]].explained_variance_ratio_K
        for layer in result.state.plan.layers
    }


def explained(ratios_K, ranks) -> float:
    return sum(float(ratios_K[name][:rank].double().sum()) for name, rank in ranks.items())


def test_parameters_explain_more_for_as_many(found):
    """Held against the rank budget at its own parameters, and against the largest one that as many parameters allow.

    Variance per parameter falls with every component, so it says nothing between two adapters of different size.
    """
    ranks, params = (found[budget][1].state for budget in (Budget.ranks, Budget.params))
    ratios_K, plan = ratios_of(found[Budget.ranks][1]), params.plan
    costs = {layer.name: layer.parameters_per_rank for layer in plan.layers}
    most = max(n for n in range(sum(plan.max_ranks().values())) if fits(plan, allocate_ranks(ratios_K, n)))
    adapters = {
        "uniform": {layer.name: R for layer in plan.layers},
        "ranks": ranks.ranks,
        "params, as many as ranks": allocate_parameters(ratios_K, costs, plan.parameters(ranks.ranks)),
        "ranks, as many as params": allocate_ranks(ratios_K, most),
        "params": params.ranks,
    }
    spent = {name: plan.parameters(adapter) for name, adapter in adapters.items()}
    variance = {name: explained(ratios_K, adapter) for name, adapter in adapters.items()}
    print(f"\nof {plan.parameter_budget:,} parameters:")
    for name, adapter in adapters.items():
        each = 1e6 * variance[name] / spent[name]
        print(f"{name:25} {spent[name]:9,} {sum(adapter.values()):5} ranks {variance[name]:.4f} {each:.3f} a million")
    waiting = [costs[name] for name, rank in params.ranks.items() if rank < plan.max_ranks()[name]]
    assert 0 <= plan.parameter_budget - spent["params"] < min(waiting)
    assert variance["params"] > variance["uniform"]
    assert spent["params, as many as ranks"] <= spent["ranks"]
    assert variance["params, as many as ranks"] > variance["ranks"]
    assert variance["params"] > variance["ranks, as many as params"]


def fits(plan: Plan, ranks: dict[str, int]) -> bool:
    return plan.parameters(ranks) <= plan.parameter_budget


def test_peft_counts_the_parameters_of_the_manifest(found, smollm2_folder, tmp_path):
    run, result = found[Budget.params]
    build_artifact(tmp_path, result, run.config.eva, provenance(run))
    manifest = json.loads((tmp_path / "manifest.json").read_text())

    def base():
        return AutoModelForCausalLM.from_pretrained(smollm2_folder, num_hidden_layers=BLOCKS)

    adapted = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    uniform = get_peft_model(base(), LoraConfig(r=R, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainable, all_of_them = (model.get_nb_trainable_parameters()[0] for model in (adapted, uniform))
    assert (manifest["trainable_parameters"], manifest["parameter_budget"]) == (trainable, all_of_them)
    assert 0.999 * all_of_them <= trainable <= all_of_them
