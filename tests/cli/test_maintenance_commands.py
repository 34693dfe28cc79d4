"""`eva-dist verify` and `gc`: a flipped bit is found, what nothing names is freed and nothing else."""

import os

import pytest

from eva_dist.store.store import Store
from tests.commands import run_command
from tests.made_artifacts import publish, write_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "one"
    write_artifact(folder)
    return folder


@pytest.fixture
def store(folder, tmp_path, monkeypatch):
    url = str(tmp_path / "store")
    publish(url, folder, "team/tiny@v1")
    monkeypatch.setenv("EVA_DIST_STORE", url)
    monkeypatch.delenv("COLUMNS", raising=False)
    return Store(url)


@pytest.fixture
def run(capsys):
    return lambda *arguments: run_command(capsys, *arguments)


def flip(store, name):
    """Change one bit of a file of the artifact where the store has it."""
    path = store.local_path(store.snapshot(store.fingerprint_of("team/tiny", "v1")).files[name])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


class TestVerify:
    @pytest.mark.parametrize("words", [["verify"], ["store", "verify"], ["verify", "team/tiny@v1"]])
    def test_all_right_is_exit_code_0(self, store, run, words):
        ran = run(*words)
        assert (ran.code, ran.out) == (0, "")
        count = len(store.snapshot(store.fingerprint_of("team/tiny", "v1")).files)
        assert f"all right: {count} files of 1 artifact, " in ran.err
        document = run(*words, "--json").json
        assert (document["files"], document["problems"]) == (count, [])

    def test_a_flipped_bit_is_one_line_with_a_remedy(self, store, run):
        flip(store, "components.safetensors")
        ran = run("verify")
        assert ran.code == 1
        wrong = [line for line in ran.out.splitlines() if "components.safetensors" in line]
        assert len(wrong) == 1 and wrong[0].startswith("team/tiny@v1 components.safetensors: ")
        assert "has sha256" in wrong[0] and "publish it again" in wrong[0]
        problems = run("verify", "--json").json["problems"]
        assert {"team/tiny@v1"} == {one["name"] for one in problems}
        assert "components.safetensors" in {one["path"] for one in problems}

    def test_of_one_artifact(self, store, run, folder):
        publish(store.url, folder, "lab/same@v1")
        flip(store, "spectrum.parquet")
        ran = run("verify", "team/tiny@v1")
        assert ran.code == 1 and ran.out.startswith("team/tiny@v1 spectrum.parquet: ")
        assert len(ran.out.splitlines()) == 1
        missing = run("verify", "team/tinny@v1")
        assert missing.code == 1 and "team/tiny" in missing.err

    def test_a_longer_file_and_a_missing_one_in_a_folder(self, run, tmp_path):
        write_artifact(tmp_path / "one")
        with (tmp_path / "one/README.md").open("a") as card:
            card.write("x")
        (tmp_path / "one/spectrum.parquet").unlink()
        ran = run("verify", tmp_path / "one", "--json")
        assert ran.code == 1
        assert [one["path"] for one in ran.json["problems"]] == ["README.md", "spectrum.parquet"]


class TestCollect:
    def age(self, store):
        """Let everything be two days old."""
        for path in store.root.rglob("*"):
            info = path.lstat()
            os.utime(path, (info.st_atime, info.st_mtime - 2 * 86400), follow_symlinks=False)

    @pytest.mark.parametrize("words", [["gc"], ["store", "gc"]])
    def test_first_it_says_and_then_it_does(self, store, run, tmp_path, words):
        write_artifact(tmp_path / "two", rho=1.0)
        gone = publish(store.url, tmp_path / "two", "team/tiny@v2")
        store.remove("team/tiny", "v2")
        assert "nothing to free" in run(*words).err and "nothing names is younger" in run(*words).err
        self.age(store)
        said = run(*words)
        assert said.code == 0 and f"artifact {gone[:12]} (team/tiny@own)" in said.out
        assert "would be freed; do it: eva-dist gc --delete" in said.err
        assert store.find(gone) is not None
        planned = run(*words, "--json").json
        assert (planned["artifacts"], planned["deleted"]) == ([gone], False)
        own = {entry.sha256 for entry in store.snapshot(gone).files.values()}
        kept = store.snapshot(store.fingerprint_of("team/tiny", "v1"))
        shared = own & {entry.sha256 for entry in kept.files.values()}
        assert planned["bytes"] == sum(blob["size"] for blob in planned["blobs"]) > 0
        assert not any(sha256 in blob["key"] for blob in planned["blobs"] for sha256 in shared)
        done = run(*words, "--delete", "--json").json
        assert (done["bytes"], done["deleted"]) == (planned["bytes"], True)
        assert store.find(gone) is None and run("verify").code == 0
        assert store.find(kept.fingerprint) is not None

    def test_an_age_that_is_none_is_refused(self, store, run):
        for wrong in ("x", "24", "-1h", "nanh", "1e999d"):
            ran = run("gc", f"--older-than={wrong}")
            assert ran.code == 2 and f"--older-than={wrong} must be a number and s, m, h or d" in ran.err


@pytest.mark.parametrize("words", [["verify"], ["store", "verify"], ["gc"], ["gc", "--delete"], ["serve"]])
def test_a_folder_that_is_not_there_is_no_store_in_order(run, tmp_path, words):
    ran = run(*words, "--store", tmp_path / "sotre")
    assert (ran.code, ran.out) == (1, "")
    assert f"there is no folder {tmp_path / 'sotre'}" in ran.err and "all right" not in ran.err
    assert not (tmp_path / "sotre").exists()


def test_a_folder_that_is_no_store_is_not_all_right(run, tmp_path):
    """A nightly check of a file system that is not mounted must not be green."""
    ran = run("verify", "--store", tmp_path)
    assert (ran.code, ran.out) == (1, "") and "holds nothing, for it has no folder objects" in ran.err
