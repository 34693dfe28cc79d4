"""Names complete: in bash itself, which splits them at `@`, and in silence where there is no store."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from eva_dist.cli.completion import complete_names
from tests.made_artifacts import publish, write_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    top = tmp_path_factory.mktemp("complete")
    write_artifact(top / "one")
    for name in ("team/tiny@rho1.0", "team/tiny@rho2.0", "lab/x@v1"):
        publish(str(top / "store"), top / "one", name)
    (top / "bin").mkdir()
    script = top / "bin/eva-dist"
    script.write_text(
        f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from eva_dist.cli.main import main\nmain()\n"
    )
    script.chmod(0o755)
    return top


def in_bash(store, *words, **variables):
    """Let bash call the function that --show-completion prints, with the words that it would split a line into."""
    given = " ".join(f"'{word}'" for word in words)
    code = f"""
source <(eva-dist --show-completion bash)
COMP_WORDS=(eva-dist {given}); COMP_CWORD={len(words)}
_eva_dist_completion eva-dist
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = os.environ | {"PATH": f"{store / 'bin'}:{os.environ['PATH']}", **variables}
    run = subprocess.run(
        ["bash", "--norc", "-c", code], capture_output=True, text=True, env=environment, cwd=store, check=False
    )
    assert run.stderr == ""
    return run.stdout.split()


def test_names_in_bash(store):
    url = str(store / "store")
    assert in_bash(store, "show", "team/ti", EVA_DIST_STORE=url) == ["team/tiny@rho1.0", "team/tiny@rho2.0"]
    # bash gives @ and what follows it as words of their own, and replaces both
    assert in_bash(store, "show", "team/tiny", "@", "rho2", EVA_DIST_STORE=url) == ["@rho2.0"]
    assert in_bash(store, "pull", "team/tiny", "@", EVA_DIST_STORE=url) == ["@rho1.0", "@rho2.0"]
    assert in_bash(store, "rm", "--store", url, "lab") == ["lab/x@v1"]


def context(**params):
    return SimpleNamespace(params=params)


def test_a_store_that_is_not_there_is_silent(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("EVA_DIST_STORE", raising=False)
    for url in (str(tmp_path / "none"), "s3://", "ftp://x", "file://host/x"):
        assert complete_names(context(store=url), "te") == []
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "none").exists()


def test_a_store_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr("eva_dist.cli.completion._PATIENCE_S", 0.05)
    monkeypatch.setattr("eva_dist.cli.completion._names_in_store", lambda url: time.sleep(30) or ["team/late@v1"])
    began = time.monotonic()
    assert complete_names(context(store="x"), "te") == []
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("begun", ["./fol", "/srv", "~/x", "s3://bucket/te"])
def test_paths_and_urls_are_left_to_the_shell(store, begun):
    assert complete_names(context(store=str(store / "store")), begun) == []
