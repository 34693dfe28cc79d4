"""`eva-dist merge`: one JSON line, the rest on standard error, exit codes."""

import json
from pathlib import Path

import pytest

from eva_dist.cli.main import main
from eva_dist.store.store import Store
from tests.summed_runs import publish_run, rows_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three runs, of which the last one keeps no sums."""
    store = Store(str(tmp_path_factory.mktemp("cli") / "store"))
    for seed, name in enumerate(("one", "two", "bare")):
        publish_run(store, name, rows_of(seed, 3), keep=name != "bare")
    return store


@pytest.fixture
def run(capfd, store):
    def start(*arguments):
        code = 0
        try:
            main(["merge", *map(str, arguments), "--store", store.url])
        except SystemExit as stopped:
            code = stopped.code
        out, err = capfd.readouterr()
        return code or 0, out, err

    return start


def test_one_json_line_and_an_artifact_with_its_figures(run):
    both = ["team/tiny@one", "team/tiny@two", "--weight", 2, "--weight", 0.5]
    code, out, err = run(*both, "eva.rho=1.0", "--revision", "sum")
    assert code == 0, err
    (line,) = out.splitlines()
    outcome = json.loads(line)
    assert (outcome["repo_id"], outcome["revision"], outcome["status"]) == ("team/tiny", "sum", "not_converged")
    assert outcome["steps"] == 6 and "4 of 4 layers had not converged to eva.tau in every source" in err
    folder = Path(outcome["url"].removeprefix("file://"))
    assert {path.name for path in folder.glob("*.png")} == {"ranks.png", "spectra.png"}  # no step, no curve by step
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(entry["weight"] for entry in manifest["merged_from"]) == [0.5, 2.0]
    assert manifest["config"]["eva"]["rho"] == 1.0 and manifest["largest_rank"] == 3
    code, out, _ = run("team/tiny@two", "team/tiny@one", "--weight", 0.5, "--weight", 2, "eva.rho=1.0")
    assert (code, json.loads(out)["status"]) == (0, "cached")
    assert json.loads(out)["revision"] == f"merged-{outcome['fingerprint'][:8]}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["team/tiny@one", "team/tiny@bare"], "team/tiny@bare (fingerprint "),
        (["team/tiny@one", "team/tiny@bare"], "python jobs/precompute.py model.name_or_path=gpt data.path=bare.txt"),
        (["team/tiny@one", "team/tiny@one"], "team/tiny@one holds the same sums as team/tiny@one"),
        (["team/tiny@one"], "1 sources and 0 weights"),
        (["team/tiny@one", "team/tiny@two", "eva.rhoo=2"], "did you mean eva.rho?"),
        (["team/tiny@one", "team/tiny@two", "data.path=x"], "data.path=x cannot be derived"),
        (["team/tiny@one", "team/tiny@two", "--repo-id", "team"], "artifact.repo_id=team must be namespace/name"),
        (["team/tiny@one", "team/tiny@two", "--weight", "-1"], "--weight -1.0 must be > 0"),
    ],
)
def test_bad_words_are_exit_code_2(run, words, message):
    if "-1" in words:
        words = [*words, "--weight", "1"]
    code, out, err = run(*words)
    assert (code, out) == (2, "") and message in err


def test_a_source_that_is_not_there_is_exit_code_1(run):
    code, out, err = run("team/tiny@one", "team/tiny@three")
    assert (code, out) == (1, "") and "three" in err
