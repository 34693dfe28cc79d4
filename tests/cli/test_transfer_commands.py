"""`eva-dist pull` and `push`: every byte right, taken up again, nobody's files or names written over."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eva_dist.artifact.load import load_eva_state_dict
from eva_dist.store.artifact_reader import FolderArtifactReader
from eva_dist.store.store import Store
from tests.commands import run_command
from tests.fake_hub import running
from tests.made_artifacts import publish, write_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "one"
    write_artifact(folder)
    return folder


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    url = str(tmp_path / "store")
    publish(url, made, "team/tiny@v1")
    monkeypatch.setenv("EVA_DIST_STORE", url)
    monkeypatch.chdir(tmp_path)
    return Store(url)


@pytest.fixture
def run(capsys):
    return lambda *arguments: run_command(capsys, *arguments)


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestPull:
    @pytest.mark.parametrize("source", ["team/tiny@v1", "team/tiny", "FOLDER", "memory"])
    def test_every_file_is_that_of_the_artifact(self, store, made, run, source, tmp_path):
        if source == "memory":
            publish(f"memory://pull-{tmp_path.name}", made, "team/tiny@v1")
            source = f"memory://pull-{tmp_path.name}/team/tiny@v1"
        ran = run("pull", made if source == "FOLDER" else source, "here")
        assert (ran.code, ran.out) == (0, "here\n")
        assert hashes(Path("here")) == hashes(made)
        assert "every sha256 is right" in ran.err
        assert load_eva_state_dict("here").keys() == load_eva_state_dict(made).keys()

    def test_without_a_folder_it_is_called_after_the_artifact(self, store, made, run):
        assert run("pull", "team/tiny@v1").out == "tiny-v1\n"
        assert run("pull", "team/tiny").out == "tiny\n"
        assert hashes(Path("tiny-v1")) == hashes(Path("tiny")) == hashes(made)
        assert run("pull", made).code == 2

    def test_some_files_alone(self, store, run):
        ran = run("pull", "team/tiny@v1", "here", "--only", "eva_state_dict.safetensors", "--json")
        assert sorted(path.name for path in Path("here").iterdir()) == ["eva_state_dict.safetensors", "manifest.json"]
        assert (ran.json["files"], ran.json["folder"], ran.json["kept_bytes"]) == (2, "here", 0)
        assert load_eva_state_dict("here")
        wrong = run("pull", "team/tiny@v1", "there", "--only", "eva_state_dict")
        assert wrong.code == 2 and "did you mean eva_state_dict.safetensors?" in wrong.err
        assert not Path("there").exists()

    def test_files_that_are_right_are_kept_and_others_come_again(self, store, made, run):
        run("pull", "team/tiny@v1", "here")
        before = {path.name: path.stat().st_ino for path in Path("here").iterdir()}
        Path("here/README.md").write_text("mine")
        Path("here/spectrum.parquet").unlink()
        document = run("pull", "team/tiny@v1", "here", "--json").json
        changed = ["README.md", "spectrum.parquet"]
        sizes = {path.name: path.stat().st_size for path in made.iterdir()}
        assert document["bytes"] - document["kept_bytes"] == sum(sizes[name] for name in changed)
        after = {path.name: path.stat().st_ino for path in Path("here").iterdir()}
        assert {name for name in after if after[name] != before[name]} == set(changed)
        assert hashes(Path("here")) == hashes(made)

    def test_killed_in_the_middle_it_leaves_whole_files_and_goes_on(self, store, made, run, tmp_path):
        code = f"""
import os, signal
from eva_dist.store import pull
from eva_dist.cli.main import main
whole = pull._read_parts
seen = []
def parts(opened, entry):
    seen.append(entry.path)
    for part in whole(opened, entry):
        yield part[: len(part) // 2]
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield part[len(part) // 2 :]
pull._read_parts = parts
main(["pull", "team/tiny@v1", {str(tmp_path / "here")!r}])
"""
        killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL
        left = hashes(tmp_path / "here")
        whole = {name: sha256 for name, sha256 in left.items() if not name.endswith(".incomplete")}
        assert len(whole) == 3 and whole.items() <= hashes(made).items()
        ran = run("pull", "team/tiny@v1", "here", "--json")
        assert ran.code == 0 and ran.json["kept_bytes"] == sum((made / name).stat().st_size for name in whole)
        assert hashes(made).items() <= hashes(tmp_path / "here").items()

    def test_nobody_s_files_are_written_over(self, store, made, run, tmp_path):
        Path("mine").mkdir()
        Path("mine/README.md").write_text("mine")
        ran = run("pull", "team/tiny@v1", "mine")
        assert ran.code == 2 and "FOLDER=mine holds other files; name a new folder" in ran.err
        assert [path.read_text() for path in Path("mine").iterdir()] == ["mine"]
        write_artifact(tmp_path / "two", rho=1.0)
        ran = run("pull", "team/tiny@v1", "two")
        assert ran.code == 2 and "FOLDER=two holds another artifact" in ran.err
        ran = run("pull", "team/tiny@v1", "mine/README.md")
        assert ran.code == 2 and "is a file" in ran.err
        ran = run("pull", "team/tiny@v1", "mine/README.md/below")
        assert ran.code == 1 and "cannot be written" in ran.err

    def test_bytes_that_differ_are_refused_and_not_left(self, store, made, run, monkeypatch):
        honest = FolderArtifactReader.read_range

        def lying(self, name, start, end):
            content = honest(self, name, start, end)
            return b"\0" * len(content) if name == "spectrum.parquet" else content

        monkeypatch.setattr(FolderArtifactReader, "read_range", lying)
        ran = run("pull", "team/tiny@v1", "here")
        assert ran.code == 1 and "spectrum.parquet of" in ran.err and "pull again" in ran.err
        left = hashes(Path("here"))
        assert "spectrum.parquet" not in left and left.items() <= hashes(made).items()


class TestPush:
    def test_into_a_store_by_name(self, store, made, run):
        ran = run("push", made, "lab/mine@v7")
        published = store.revision_url("lab/mine", "v7")
        assert (ran.code, ran.out) == (0, f"{published}\n")
        assert store.fingerprint_of("lab/mine", "v7") == store.fingerprint_of("team/tiny", "v1")
        assert run("push", "team/tiny@v1", "lab/mine", "--json").json["revision"] == "own"  # the artifact's own

    def test_into_another_store_by_url(self, store, run, tmp_path):
        other = f"memory://push-{tmp_path.name}"
        document = run("push", "team/tiny@v1", f"{other}/team/tiny@v2", "--json").json
        assert (document["url"], document["moved_from"]) == (f"{other}/team/tiny@v2", None)
        source = store.snapshot(store.fingerprint_of("team/tiny", "v1"))
        target = Store(other)
        assert target.find(document["fingerprint"]) is not None
        for entry in source.files.values():
            if entry.path != "manifest.json":
                target.verify_file(entry)
        there = tmp_path / "elsewhere"
        assert run("push", f"{other}/team/tiny@v2", f"{there.as_uri()}/team/tiny@v3").code == 0
        assert Store(str(there)).fingerprint_of("team/tiny", "v3") == document["fingerprint"]

    def test_a_name_of_another_artifact_is_not_taken(self, store, run, tmp_path):
        write_artifact(tmp_path / "two", rho=1.0)
        before = store.fingerprint_of("team/tiny", "v1")
        ran = run("push", tmp_path / "two", "team/tiny@v1")
        assert ran.code == 2 and f"is another artifact, {before[:12]}" in ran.err and "--force" in ran.err
        assert store.fingerprint_of("team/tiny", "v1") == before
        moved = run("push", tmp_path / "two", "team/tiny@v1", "--force", "--json").json
        assert moved["moved_from"] == before
        assert store.fingerprint_of("team/tiny", "v1") == moved["fingerprint"] != before

    def test_a_damaged_folder_is_not_published(self, store, run, tmp_path):
        write_artifact(tmp_path / "two", rho=1.0)
        (tmp_path / "two/README.md").write_text("x")
        ran = run("push", tmp_path / "two", "team/tiny@v2")
        assert ran.code == 1 and "README.md has sha256" in ran.err
        assert store.fingerprint_of("team/tiny", "v2") is None

    @pytest.mark.parametrize("target", ["tiny", "a/b/c", "team/tiny@", "../x@v1", "s3://b/x", "ftp://h/a/b@c"])
    def test_a_target_that_is_none_is_bad_usage(self, store, made, run, target):
        ran = run("push", made, target)
        assert ran.code == 2 and f"={target}" in ran.err
        assert len(store.revisions()) == 1

    def test_a_manifest_without_a_usable_revision_needs_one(self, store, run, tmp_path):
        write_artifact(tmp_path / "two", rho=1.0)
        path = tmp_path / "two/manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "../../up"}))
        ran = run("push", tmp_path / "two", "team/tiny")
        assert ran.code == 2 and "give team/tiny@revision" in ran.err
        assert os.listdir(tmp_path / "store/team/tiny") == ["v1"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of httpx2, by huggingface_hub 2.4
def test_over_a_hub_and_back(store, made, run, monkeypatch, tmp_path):
    monkeypatch.setenv("EVA_DIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with running() as hub:
        hub.tokens["writer"] = {"org"}
        monkeypatch.setenv("EVA_DIST_TOKEN", "writer")
        ran = run("push", "team/tiny@v1", f"{hub.url}/org/tiny@exp", "--private")
        assert (ran.code, ran.out) == (0, f"{hub.url}/org/tiny/tree/exp\n"), ran.err
        shown = run("show", f"{hub.url}/org/tiny@exp", "--json").json
        assert shown["fingerprint"] == store.fingerprint_of("team/tiny", "v1")
        assert run("pull", f"{hub.url}/org/tiny@exp", "here").code == 0
        assert run("verify", f"{hub.url}/org/tiny@exp").code == 0
    assert hashes(Path("here"))["eva_state_dict.safetensors"] == hashes(made)["eva_state_dict.safetensors"]
    assert run("verify", "here").code == 0
