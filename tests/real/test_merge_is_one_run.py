"""Merged against one run, on two blocks of SmolLM2 and two halves of real text, and what the sums take on disk.

Slow: sums of the widest inputs are decomposed a dozen times. The same in little: tests/transform/test_merge.py.
"""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from eva_dist.config import (
    ArtifactConfig,
    ClusterConfig,
    Config,
    DataConfig,
    EvaConfig,
    ModelConfig,
    OnMaxSteps,
    SolverConfig,
    SolverName,
    StoreConfig,
)
from eva_dist.transform.merge import merge_and_publish
from tests.own_run import own_run

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("no_figures")]
STEP = 24


@pytest.fixture(scope="module")
def compute(smollm2_folder, docstrings_file, tmp_path_factory):
    """Run an epoch over some of the docstrings, no layer leaving before its end, and keep the sums.

    In their order, so that both ways forward the same minibatches: others round otherwise, in float32.
    """
    folder = tmp_path_factory.mktemp("merge")
    lines = docstrings_file.read_text(encoding="utf-8").splitlines(keepends=True)

    def run(name, begin, end):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(lines[begin:end]), encoding="utf-8")
        assert (end - begin) % STEP == 0
        return own_run(
            Config(
                model=ModelConfig(name_or_path=str(smollm2_folder), config_overrides={"num_hidden_layers": 2}),
                data=DataConfig(path=str(path), max_length=64, step_size=STEP, shuffle=False),
                eva=EvaConfig(
                    r=8,
                    rho=2.0,
                    tau=1.0,
                    lora_alpha=16.0,
                    target_modules="all-linear",
                    max_steps=(end - begin) // STEP,
                    on_max_steps=OnMaxSteps.accept,
                ),
                solver=SolverConfig(SolverName.covariance, keep_covariance=True),
                cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
                store=StoreConfig(url=str(folder / "store")),
                artifact=ArtifactConfig(repo_id="tests/merge", revision=name),
            )
        )

    return run


def test_two_halves_merged_are_one_run_over_both(compute, tmp_path):
    first, second = compute("first", 0, STEP), compute("second", STEP, 2 * STEP)
    both = compute("both", 0, 2 * STEP)
    started = time.perf_counter()
    merged = merge_and_publish([first.url, second.url], [], {}, str(tmp_path / "store"))
    seconds = time.perf_counter() - started
    folder = Path(merged.url.removeprefix("file://"))
    manifest = json.loads((folder / "manifest.json").read_text())
    ranks, theirs = ({n: layer["rank"] for n, layer in m["layers"].items()} for m in (manifest, both.manifest))
    a, b = (load_file(where / "components.safetensors") for where in (folder, both.folder))
    cosine = min(float(torch.linalg.vecdot(a[tap], b[tap]).abs().min()) for tap in b)
    x, y = (pq.read_table(where / "spectrum.parquet").to_pydict() for where in (folder, both.folder))
    off = {
        column: max(abs(p - q) / q for p, q in zip(x[column], y[column], strict=True))
        for column in ("singular_value", "explained_variance_ratio")
    }
    size = manifest["files"]["covariance.safetensors"]["size"]
    print(
        f"merged in {seconds:.2f} s: ranks {min(ranks.values())}-{max(ranks.values())}, same: {ranks == theirs}; "
        f"1 - |cos| at most {1 - cosine:.1e}; relative error {off}; covariance.safetensors {size:,} bytes"
    )
    assert ranks == theirs and len(set(ranks.values())) > 2
    assert cosine >= 1 - 1e-10 and max(off.values()) <= 1e-10
    assert merged.tokens == both.manifest["tokens"]
    # a packed triangle, mean, rows and total variance for each input, and a header
    assert size == pytest.approx(8 * 2 * sum(d * (d + 1) // 2 + d + 2 for d in (576, 576, 576, 1536)), rel=1e-3)
