"""Samples without a token that counts, from the workers' count to the artifact; what data add to a fingerprint."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eva_dist.config import OnMaxSteps
from eva_dist.errors import DataError
from tests.own_run import own_run

WORDS = "w1 w2 w3 w4 w5 w6 w7"
FOLD = {"max_length": 32, "step_size": 8, "batch_size": None, "prompt_field": "q", "shuffle": False}
SHORT = {"r": 2, "rho": 1.0, "tau": 0.5, "max_steps": 2, "on_max_steps": OnMaxSteps.accept}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def of_lengths(lengths: list[int]) -> list[dict[str, str]]:
    return [{"q": " ".join(["w9"] * length), "text": f"{WORDS} w{i % 9}"} for i, length in enumerate(lengths)]


@pytest.mark.usefixtures("no_figures")
def test_the_artifact_says_how_many_samples_were_lost_if_any_were(configure, tmp_path, caplog):
    lossy = write(tmp_path / "lossy.jsonl", of_lengths([40, 40, 40, 2] * 10))
    manifest = own_run(configure(data={**FOLD, "path": lossy}, eva=SHORT)).manifest
    steps = manifest["steps"]
    assert manifest["samples_without_tokens"] == 6 * steps
    assert (
        "30 of the 40 rows keep no token that counts: in 30 all that counts lies behind data.max_length=32"
        in caplog.text
    )
    assert f"{6 * steps} of {8 * steps} samples of the pass had no token that counts" in caplog.text
    caplog.clear()
    whole = write(tmp_path / "whole.jsonl", of_lengths([2] * 40))
    manifest = own_run(configure(data={**FOLD, "path": whole}, eva=SHORT)).manifest
    assert "samples_without_tokens" not in manifest and "no token that counts" not in caplog.text
    assert set(manifest["data"]) == {"digest", "samples", "blank"}
    assert not {"tools_field", "role_map"} & manifest["config"]["data"].keys()


def test_no_row_left_is_refused_before_anything_starts(prepared, tmp_path):
    path = write(tmp_path / "lost.jsonl", of_lengths([40] * 20))
    with pytest.raises(DataError, match=r"^data\.max_length=32 must leave room"):
        prepared(data={**FOLD, "path": path})
    assert prepared(data={**FOLD, "path": path}, eva={"use_label_mask": False}).data["samples"] == 20


def test_only_tools_that_the_template_takes_change_a_fingerprint(prepared, tiny_model, tmp_path):
    row = {"text": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]}
    with_tools = write(tmp_path / "tools.jsonl", [{**row, "tools": [{"name": "w4"}]}])
    without = write(tmp_path / "none.jsonl", [row])
    plain = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    found = {}
    for name, template in [("deaf", plain), ("hears", plain + "{{ tools }}")]:
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        for path in (with_tools, without):
            run = prepared(data={"path": path}, model={"name_or_path": str(folder)})
            found[name, path] = run.decisive["data"]
    assert found["deaf", with_tools] == found["deaf", without] == found["hears", without]
    assert found["hears", with_tools].keys() - found["hears", without].keys() == {"tools"}
