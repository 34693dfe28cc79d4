"""Topology: one worker, two, two that hold the model together, four as two such pairs: one result."""

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch

from eva_dist.config import (
    ArtifactConfig,
    ClusterConfig,
    Config,
    DataConfig,
    EvaConfig,
    Exchange,
    ModelConfig,
    OnMaxSteps,
    StoreConfig,
)
from eva_dist.run.prepare import prepare
from tests.gang_processes import assignment_of, run_alone, without_ray
from tests.several_processes import SeveralProcesses

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Topology:
    """How many workers, how many of them hold the model together, and how rows travel."""

    num_workers: int = 1
    shard_size: int = 1
    exchange: Exchange = Exchange.to_owner


@pytest.fixture(scope="module")
def compute(smollm2_folder, minilm_folder, docstrings_file, tmp_path_factory):
    """Run a few steps on a model in a topology; the lone worker's result is kept."""
    models = {
        "smollm2": ModelConfig(name_or_path=str(smollm2_folder), config_overrides={"num_hidden_layers": 6}),
        "minilm": ModelConfig(name_or_path=str(minilm_folder)),
    }
    alone = {}

    def run(model: str, topology: Topology, on_ray: bool = False):
        if topology == Topology() and model in alone:
            return alone[model]
        workers, shard, exchange = topology.num_workers, topology.shard_size, topology.exchange
        config = Config(
            model=models[model],
            data=DataConfig(path=str(docstrings_file), max_length=96, step_size=6),
            eva=EvaConfig(
                r=8,
                target_modules="all-linear",
                exclude_modules=["pooler.dense"],
                max_steps=5,
                on_max_steps=OnMaxSteps.accept,
            ),
            cluster=ClusterConfig(
                num_workers=workers, shard_size=shard, exchange=exchange, timeout_s=120.0, threads_per_worker=1
            ),
            store=StoreConfig(url=str(tmp_path_factory.mktemp("store"))),
            artifact=ArtifactConfig(repo_id="tests/topology"),
        )
        with nullcontext() if on_ray else without_ray(SeveralProcesses):
            result = run_alone(assignment_of(prepare(config)), lambda state: None)
        if topology == Topology():
            alone[model] = result
        return result

    return run


def check_same(found, expected):
    assert found.state.steps == expected.state.steps == 5
    assert found.state.tokens == expected.state.tokens
    assert found.state.ranks == expected.state.ranks
    worst = 1.0
    for group, components in expected.components.items():
        rank = expected.state.group_rank(group)
        cosines_K = torch.cosine_similarity(found.components[group].v_KD[:rank], components.v_KD[:rank])
        worst = min([worst, *cosines_K.abs().tolist()])
    print(f"\nworst |cos| {worst:.7f}")
    assert worst >= 0.9999


ALL = [
    Topology(2),
    Topology(2, exchange=Exchange.all_gather),
    Topology(2, 2),
    Topology(2, 2, Exchange.all_gather),
    Topology(4, 2),
    Topology(4, 2, Exchange.all_gather),
]


def ways(*fast: int) -> list:
    """All topologies, those but `fast` marked slow: each starts a gang of its own."""
    return [
        pytest.param(
            topology,
            id=f"{topology.num_workers} by {topology.shard_size}, {topology.exchange.value}",
            marks=[] if at in fast else [pytest.mark.slow],
        )
        for at, topology in enumerate(ALL)
    ]


@pytest.mark.parametrize("topology", ways(2))
def test_an_encoder_comes_out_the_same(compute, topology):
    check_same(compute("minilm", topology), compute("minilm", Topology()))


@pytest.mark.parametrize("topology", ways())
def test_a_language_model_comes_out_the_same(compute, topology):
    check_same(compute("smollm2", topology), compute("smollm2", Topology()))


@pytest.mark.slow
@pytest.mark.ray
def test_actors_come_to_the_same(compute, ray_here):
    """Four, in pairs that hold the model together: all of the topology at once, for Ray is in it with no number."""
    check_same(compute("minilm", Topology(4, 2), on_ray=True), compute("minilm", Topology()))
