"""`eva-dist ls` and `rm` on real stores in a folder; what a poisoned manifest may not do; what is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eva_dist.store.store import Store
from tests.commands import run_command
from tests.made_artifacts import publish, write_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two artifacts, in folders that nobody writes to."""
    top = tmp_path_factory.mktemp("folders")
    write_artifact(top / "one", rho=2.0)
    write_artifact(top / "two", rho=1.0, r=2)
    return top


@pytest.fixture
def store(folders, tmp_path, monkeypatch):
    """Three names of two artifacts in the store that the environment names."""
    url = str(tmp_path / "store")
    publish(url, folders / "one", "team/tiny@rho2")
    publish(url, folders / "two", "team/tiny@rho1")
    publish(url, folders / "one", "lab/other@v1")
    monkeypatch.setenv("EVA_DIST_STORE", url)
    monkeypatch.delenv("COLUMNS", raising=False)
    return Store(url)


@pytest.fixture
def run(capsys):
    return lambda *arguments: run_command(capsys, *arguments)


def names(store):
    return [f"{one.repo_id}@{one.revision}" for one in store.revisions()]


class TestList:
    def test_an_empty_store_says_what_to_do(self, run, tmp_path):
        ran = run("ls", "--store", tmp_path / "none")
        assert (ran.code, ran.out) == (0, "")
        assert "there is no such folder" in ran.err
        assert f"eva-dist push FOLDER team/name@revision --store {tmp_path / 'none'}" in ran.err
        assert run("ls", "--store", tmp_path / "none", "--json").json["artifacts"] == []
        assert not (tmp_path / "none").exists()

    def test_what_each_artifact_is(self, store, run):
        ran = run("ls")
        head, *lines = ran.out.splitlines()
        assert (ran.code, ran.err) == (0, "")
        assert head.split() == "artifact status base model r rho tau data size age fingerprint".split()
        assert [line.split()[0] for line in lines] == ["lab/other@v1", "team/tiny@rho1", "team/tiny@rho2"]
        fingerprint = store.fingerprint_of("team/tiny", "rho1")
        assert lines[1].split()[1:7] == ["done", "org/tiny", "2", "1", "0.9", "words.jsonl"]
        assert lines[1].split()[-1] == fingerprint[:12]
        row = run("ls", "rho1", "--json").json
        assert row["artifacts"] == [] and row["total"] == 0  # a bare word is a namespace or a name
        row = run("ls", "@rho1", "--json").json["artifacts"][0]
        assert (row["r"], row["rho"], row["fingerprint"]) == (2, 1.0, fingerprint)
        assert row["size"] == store.snapshot(fingerprint).size

    def test_order_and_limit(self, store, run):
        shown = run("ls", "--sort", "rho", "--limit", 1)
        assert shown.out.splitlines()[1].startswith("team/tiny@rho1")
        assert "1 of 3 shown" in shown.err
        ran = run("ls", "--sort", "siz")
        assert ran.code == 2 and "--sort=siz must be one of name, age, size" in ran.err
        assert "did you mean size?" in ran.err

    def test_nothing_that_fits_names_what_is_like_it(self, store, run):
        ran = run("ls", "team/tinny")
        assert ran.code == 0 and "no artifact of 3 fits team/tinny; did you mean team/tiny" in ran.err
        assert "did you mean '*tin*'?" in run("ls", "tin").err

    def test_broken_ones_are_shown(self, store, run):
        fingerprint = store.fingerprint_of("team/tiny", "rho1")
        (store.root / "objects/manifests" / f"{fingerprint}.json").write_text("{")
        whole = store.snapshot(store.fingerprint_of("lab/other", "v1"))
        store.local_path(whole.files["components.safetensors"]).unlink()
        ran = run("ls")
        assert ran.code == 0
        assert [line.split()[1] for line in ran.out.splitlines()[1:]] == ["broken"] * 3
        assert ran.err.count("broken: ") == 3 and "is no manifest" in ran.err and "files are missing or cut" in ran.err
        rows = run("ls", "--json").json["artifacts"]
        assert [row["status"] for row in rows] == ["broken"] * 3 and all(row["problem"] for row in rows)

    @pytest.mark.parametrize("width", [40, 80, 120])
    def test_lines_fit_the_terminal(self, store, run, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = run("ls").out.splitlines()
        assert max(map(len, lines)) <= width
        assert [line.split()[0] for line in lines[1:]] == ["lab/other@v1", "team/tiny@rho1", "team/tiny@rho2"]


class TestRemove:
    def test_the_name_goes_and_the_artifact_stays(self, store, run):
        fingerprint = store.fingerprint_of("team/tiny", "rho1")
        ran = run("rm", "team/tiny@rho1", "--yes")
        assert ran.code == 0 and "eva-dist gc --delete" in ran.err
        assert names(store) == ["lab/other@v1", "team/tiny@rho2"]
        assert store.find(fingerprint) is not None

    def test_without_a_person_it_needs_yes(self, store, run):
        ran = run("rm", "team/tiny@rho1")
        assert ran.code == 2 and "give --yes" in ran.err
        assert len(names(store)) == 3

    @pytest.mark.parametrize(("answer", "left"), [("n\n", 3), ("y\n", 2)])
    def test_on_a_terminal_it_asks(self, store, run, monkeypatch, answer, left):
        import io

        monkeypatch.setattr("eva_dist.cli.rm.is_terminal", lambda: True)
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        ran = run("rm", "team/tiny@rho1")
        assert (ran.code, len(names(store))) == (1 if left == 3 else 0, left)
        assert "Take this name away" in ran.err

    @pytest.mark.parametrize("words", ["team/tiny", "team/*@*", "team/tiny@rho?"])
    def test_several_need_to_be_meant(self, store, run, words):
        ran = run("rm", words, "--yes")
        assert ran.code == 2 and "team/tiny@rho1, team/tiny@rho2; name one" in ran.err and "--all" in ran.err
        assert len(names(store)) == 3
        assert run("rm", words, "--yes", "--all").code == 0
        assert names(store) == ["lab/other@v1"]

    @pytest.mark.parametrize("words", ["team/tiny@rh1", "team/tiny@", "tiny", "*", "team/tine"])
    def test_a_name_that_is_none_takes_nothing(self, store, run, words):
        ran = run("rm", words, "--yes")
        assert ran.code in (1, 2) and len(names(store)) == 3
        if words == "team/tiny@rh1":
            assert "did you mean team/tiny@rho1" in ran.err

    def test_one_wrong_name_of_several_takes_nothing(self, store, run):
        assert run("rm", "team/tiny@rho1", "team/tiny@none", "--yes").code == 1
        assert len(names(store)) == 3


POISON = "\x1b[2J\x1b]0;owned\x07[red]x[/red]:smile:\u202e\x9b2J"


def test_a_poisoned_manifest_cannot_steer_the_terminal(store, run):
    fingerprint = store.fingerprint_of("team/tiny", "rho2")
    path = store.root / "objects/manifests" / f"{fingerprint}.json"
    manifest = json.loads(path.read_text())
    manifest |= {"status": POISON, "method": POISON, "repo_id": POISON, "created": POISON}
    manifest["model"]["id"] = manifest["config"]["data"]["path"] = POISON
    manifest["config"]["eva"]["budget"] = POISON
    manifest["config"]["eva"]["rho"] = float("nan")
    path.chmod(0o644)
    path.write_text(json.dumps(manifest))
    for ran in (
        run("ls"),
        run("ls", "--json"),
        run("show", "team/tiny@rho2"),
        run("show", "team/tiny@rho2", "--json"),
        run("diff", "team/tiny@rho2", "team/tiny@rho1"),
        run("diff", "team/tiny@rho2", "team/tiny@rho1", "--json"),
        run("show", f"team/{POISON}"),
    ):
        said = ran.out + ran.err
        assert said and all(c.isprintable() or c == "\n" for c in said)
        assert "[red]x[/red]:smile:" in said
    assert run("ls", "@rho2", "--json").json["artifacts"][0]["rho"] is None


def test_looking_needs_no_torch_and_help_less_still(store, tmp_path):
    code = f"""
import sys, contextlib, io
from eva_dist.cli.main import main
for words in (["--help"], ["ls"], ["show", "team/tiny@rho1"], ["pull", "team/tiny@rho1", {str(tmp_path / "pulled")!r}],
              ["verify"], ["verify", "team/tiny@rho1"], ["gc"], ["rm", "team/tiny@rho1", "--yes"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(words)
        except SystemExit as stop:
            assert not stop.code, (words, stop.code)
    print(words[0], *sorted({{name.partition(".")[0] for name in sys.modules}}
          & {{"torch", "ray", "transformers", "peft", "hydra", "numpy", "obstore", "pyarrow", "rich"}}), sep=",")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    loaded = {line.split(",")[0]: set(line.split(",")[1:]) for line in run.stdout.splitlines()}
    assert not any(of_one & {"torch", "ray", "transformers", "peft", "hydra"} for of_one in loaded.values())
    assert loaded["--help"] <= {"rich"}
    assert "obstore" in loaded["ls"] and "numpy" not in loaded["ls"]
