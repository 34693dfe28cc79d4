"""Published artifacts of `solver=covariance` that keep their sums, from token rows that a test makes: no model."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eva_dist.artifact.covariance import write_covariance
from eva_dist.artifact.write import Provenance, build_artifact
from eva_dist.calibration.controller import GroupReport, StepReport, advance, first_state
from eva_dist.calibration.engine import finish
from eva_dist.config import Config, DataConfig, EvaConfig, ModelConfig, OnMaxSteps, SolverConfig, SolverName
from eva_dist.hashing import fingerprint
from eva_dist.methods.eva import Eva
from eva_dist.numerics.components import Components, component_cosines
from eva_dist.numerics.covariance import CovarianceState, CovarianceTracker, to_packed
from eva_dist.plan import Plan, make_layer, make_plan
from eva_dist.store.store import Published, Store

EVA = EvaConfig(r=3, rho=2.0, tau=1.0, target_modules=["a", "b", "c", "d"], on_max_steps=OnMaxSteps.accept)
SIZES = {"h.0.a": 16, "h.0.b": 16, "h.0.c": 24, "h.0.d": 12}
INPUTS = [["h.0.a", "h.0.b"], ["h.0.c"], ["h.0.d"]]
TAPS = ["h.0.a", "h.0.c", "h.0.d"]
MODEL = {"id": "gpt", "revision": None, "task_type": None, "weights": {"w": "1f"}, "dtype": "float32"}

Rows = Mapping[str, Sequence[Tensor]]
"""Tap -> the token rows of each step."""


def rows_of(seed: int, steps: int, *taps: str, tokens: int = 30) -> dict[str, list[Tensor]]:
    """Return rows with a decaying spectrum, a mean of their own and directions that hang on `seed`."""
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for tap in taps or TAPS:
        width = SIZES[tap]
        mixing_DD = torch.randn(width, width, generator=generator) * 0.8 ** torch.arange(width)
        mean_D = torch.randn(width, generator=generator)
        rows[tap] = [torch.randn(tokens, width, generator=generator) @ mixing_DD.T + mean_D for _ in range(steps)]
    return rows


def after(*parts: Rows) -> dict[str, list[Tensor]]:
    """Return the rows of one run after those of another."""
    return {tap: [x_TD for part in parts for x_TD in part.get(tap, [])] for tap in TAPS}


def publish_run(
    store: Store, name: str, rows: Rows, *, keep: bool = True, model: Mapping[str, Any] = MODEL, **changes: Any
) -> Published:
    """Run a pass over these rows, and publish it; groups that have fewer steps than others saw no token at first.

    Args:
        name: the revision.
        changes: settings of EVA; `tokenizer`: its hash; `data`: what the data is, the revision if not given.
    """
    tokenizer, data = changes.pop("tokenizer", "ab"), changes.pop("data", name)
    eva = replace(EVA, **changes)
    r = {layer: eva.rank_pattern.get(layer[-1], eva.r) for layer in SIZES}
    layers = [make_layer(layer, size, 8, r[layer], eva.rho) for layer, size in SIZES.items()]
    plan = make_plan(layers, INPUTS, budget=eva.budget)
    steps = max(map(len, rows.values()))
    eva = replace(eva, max_steps=steps)
    state, states, components = _pass(plan, eva, rows, steps)
    config = Config(
        ModelConfig("gpt"),
        DataConfig(f"{name}.txt"),
        eva,
        SolverConfig(SolverName.covariance, keep_covariance=keep),
    )
    decisive = {
        "method": "eva",
        "model": dict(model),
        "data": data,
        "eva": {
            **{key: getattr(eva, key) for key in ("r", "rho", "tau", "whiten", "lora_alpha", "max_steps")},
            "adjust_scaling_factors": eva.adjust_scaling_factors,
        },
        "layers": [[layer.name, layer.r, layer.max_rank] for layer in layers],
    }
    provenance = Provenance(
        fingerprint=fingerprint(decisive),
        decisive=decisive,
        config=json.loads(json.dumps(config.to_dict())),
        model=dict(model),
        tokenizer={"class": "Words", "sha256": tokenizer},
        data={"digest": data, "samples": 10 * steps, "blank": 0},
        versions={"eva-dist": "0"},
        world_size=1,
        url=store.snapshot_url(fingerprint(decisive)),
        repo_id="team/tiny",
        revision=name,
        created="2026-01-02T03:04:05+00:00",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sums"
        updated = [group for group in plan.groups if group.index in states]
        write_covariance(path, updated, lambda group: to_packed(states[group.index]))
        result = finish(state, components, covariance=path if keep else None)
        return store.publish(
            provenance.fingerprint, "team/tiny", name, lambda into: build_artifact(into, result, eva, provenance)
        )


def _pass(plan: Plan, eva: EvaConfig, rows: Rows, steps: int) -> tuple[Any, dict[int, CovarianceState], Any]:
    """Fold the rows as a run does that leaves no group before its end."""
    states: dict[int, CovarianceState] = {}
    components: dict[int, Components] = {}
    state = first_state(plan, Eva(eva.tau), steps, accept=True)
    for step in range(steps):
        reports, tokens = [], 0
        for group in plan.groups:
            at = step - (steps - len(rows.get(group.tap, [])))
            if at < 0:
                reports.append(GroupReport(group.index, 0))
                continue
            tracker = CovarianceTracker(group.n_components)
            x_TD = rows[group.tap][at]
            states[group.index] = tracker.update(states.get(group.index), x_TD)
            found, before = tracker.components(states[group.index]), components.get(group.index)
            cosines_K = component_cosines(found.v_KD, before.v_KD) if before else None
            reports.append(GroupReport(group.index, len(x_TD), found.explained_variance_ratio_K, cosines_K))
            components[group.index] = found
            tokens = max(tokens, len(x_TD))
        state = advance(state, [StepReport(tuple(reports), tokens, 0, {"forward": 0.5})], 0.5)
    return replace(state, pass_seconds=0.5 * steps), states, components


ROWS = {
    "one": rows_of(1, 4),
    "two": rows_of(2, 7, tokens=50),
    "three": rows_of(3, 5, "h.0.a", "h.0.d"),  # no token reached c
}
"""Of three runs, by name."""


def folder_of(outcome) -> Path:
    return Path(outcome.url.removeprefix("file://"))


def manifest_of(outcome):
    return json.loads((folder_of(outcome) / "manifest.json").read_text())


def assert_same(ours: Path, theirs: Path, tolerance=1e-10):
    """Ranks, components up to their sign, singular values and ratios, sums."""
    a, b = (json.loads((folder / "manifest.json").read_text()) for folder in (ours, theirs))
    assert {name: layer["rank"] for name, layer in a["layers"].items()} == {
        name: layer["rank"] for name, layer in b["layers"].items()
    }
    a, b = (load_file(folder / "components.safetensors") for folder in (ours, theirs))
    assert a.keys() == b.keys()
    for tap in a:
        assert a[tap].shape == b[tap].shape and a[tap].dtype == b[tap].dtype
        assert bool((torch.linalg.vecdot(a[tap], b[tap]).abs() >= 1 - tolerance).all()), tap
    a, b = (pq.read_table(folder / "spectrum.parquet").to_pydict() for folder in (ours, theirs))
    for column in ("layer", "component", "kept"):
        assert a[column] == b[column]
    for column in ("singular_value", "explained_variance_ratio"):
        assert a[column] == pytest.approx(b[column], rel=tolerance)
    a, b = (load_file(folder / "covariance.safetensors") for folder in (ours, theirs))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance * float(b[name].abs().max()))
