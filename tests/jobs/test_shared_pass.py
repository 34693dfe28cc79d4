"""A sweep by the very command, on a gang: the launcher changes how points are computed, and no number."""

import json
from pathlib import Path

from tests.cluster.faults import job


def test_both_launchers_publish_the_same(tiny_model, words_file, tmp_path):
    published = {}
    for launcher in ("shared_pass", "basic"):
        words = [
            *("-m", f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}"),
            *(f"model.name_or_path={tiny_model}", f"data.path={words_file}", "data.max_length=64"),
            *("data.step_size=6", "data.batch_size=2", "eva.r=4", "eva.tau=0.9", "eva.target_modules=all-linear"),
            *("cluster.threads_per_worker=1", f"store.url={tmp_path / launcher / 'store'}", "eva.rho=1,0.5,2"),
        ]
        with job(words, tmp_path) as process:
            out, _ = process.communicate(timeout=240)
        said = (tmp_path / "log").read_text()
        assert process.returncode == 2, said  # of the one bad point
        assert said.count("error: eva.rho=0.5 must be") == 1
        outcomes = [json.loads(line) for line in out.splitlines()]
        for n, outcome in zip((0, 2), outcomes, strict=True):
            folder = tmp_path / f"{launcher}/{n}"
            assert json.loads((folder / "result.json").read_text()) == outcome
            steps = [json.loads(line)["step"] for line in (folder / "progress.jsonl").read_text().splitlines()]
            assert steps == list(range(1, outcome["steps"] + 1))
        artifacts = [Path(outcome["url"].removeprefix("file://")) for outcome in outcomes]
        published[launcher] = [
            (
                *(outcome[key] for key in ("revision", "fingerprint", "status", "steps", "tokens", "layers_converged")),
                (artifact / "eva_state_dict.safetensors").read_bytes(),
            )
            for outcome, artifact in zip(outcomes, artifacts, strict=True)
        ]
    assert published["shared_pass"] == published["basic"]
    assert [point[0] for point in published["basic"]] == ["rho1.0-tau0.9", "rho2.0-tau0.9"]
    assert all(len(point[-1]) > 4 * 14 * 4 * 32 for point in published["basic"])
