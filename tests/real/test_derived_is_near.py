"""Derived against computed, on two blocks of SmolLM2 and real text: how near is near."""

import re
from pathlib import Path
from statistics import median

import pytest
import torch

import eva_dist
import eva_dist.artifact.write
from eva_dist.config import ArtifactConfig, ClusterConfig, Config, DataConfig, EvaConfig, ModelConfig, StoreConfig
from eva_dist.errors import DerivationError
from eva_dist.transform.derive import derive_and_publish
from tests.own_run import own_run

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("no_figures")]


@pytest.fixture(scope="module")
def compute(smollm2_folder, docstrings_file, tmp_path_factory):
    """Run a pass of its own with some settings of EVA, and publish it."""

    def run(**eva):
        settings = {"r": 8, "rho": 2.0, "tau": 0.95, "lora_alpha": 16.0, "target_modules": "all-linear"}
        config = Config(
            model=ModelConfig(name_or_path=str(smollm2_folder), config_overrides={"num_hidden_layers": 2}),
            data=DataConfig(path=str(docstrings_file), max_length=64, step_size=12),
            eva=EvaConfig(**(settings | eva)),
            cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
            store=StoreConfig(url=str(tmp_path_factory.mktemp("own"))),
            artifact=ArtifactConfig(repo_id="tests/derive"),
        )
        return own_run(config)

    return run


@pytest.fixture(scope="module")
def source(compute):
    return compute()


def apart(ours, theirs):
    """Return by how much ranks differ, `|cos|` by component, and the least overlap of a layer's subspaces."""
    ranks, cosines, overlaps = [], [], []
    for name, a_RD in ours.items():
        b_RD = theirs[name]
        common = min(len(a_RD), len(b_RD))
        ranks.append(abs(len(a_RD) - len(b_RD)))
        if common:
            a_RD, b_RD = (torch.nn.functional.normalize(x_RD[:common]) for x_RD in (a_RD, b_RD))
            cosines += (a_RD * b_RD).sum(dim=1).abs().tolist()
            overlaps.append(float((a_RD @ b_RD.T).square().sum() / common))
    return ranks, cosines, overlaps


@pytest.mark.parametrize(
    "changes",
    [{"rho": 1.5}, {"rho": 1.25}, {"r": 4}, {"tau": 0.9}],
    ids=str,
)
def test_derived_is_near_to_a_run(compute, source, tmp_path, changes):
    ours = derive_and_publish(source.url, changes, str(tmp_path / "store"))
    theirs = compute(**changes)
    found = [eva_dist.load_eva_state_dict(url, prefix="") for url in (ours.url, theirs.url)]
    ranks, cosines, overlaps = apart(*found)
    print(
        f"{changes}: steps {ours.steps} of the source, {theirs.manifest['steps']} of its own run; ranks that differ "
        f"{sum(map(bool, ranks))} of {len(ranks)}, by {max(ranks)} at most; |cos| median {median(cosines):.4f}, "
        f"least {min(cosines):.4f}; overlap median {median(overlaps):.4f}, least {min(overlaps):.4f}"
    )
    assert ours.fingerprint != theirs.fingerprint
    assert max(ranks) <= 2 and median(cosines) > 0.98 and median(overlaps) > 0.98


def test_layers_that_get_more_than_the_pass_waited_for_are_refused(source, tmp_path):
    """With rho=1 every layer gets r, those too that rho=2 had given less: their later components still turned."""
    with pytest.raises(DerivationError) as error:
        derive_and_publish(source.url, {"rho": 1.0}, str(tmp_path / "store"))
    _, *layers = str(error.value).splitlines()
    assert layers
    for line in layers:
        rank, before = re.search(r"of (\d+) components \(the source gave (\d+)\) below", line).groups()
        assert (int(rank), int(before) < 8) == (8, True)


def test_whitening_is_to_the_bit(compute, source, tmp_path):
    ours = derive_and_publish(source.url, {"whiten": True}, str(tmp_path / "store"))
    theirs = compute(whiten=True)
    assert ours.fingerprint == theirs.fingerprint
    for name in ("eva_state_dict.safetensors", "components.safetensors", "spectrum.parquet"):
        assert (Path(ours.url.removeprefix("file://")) / name).read_bytes() == (theirs.folder / name).read_bytes()
