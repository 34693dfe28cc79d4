"""Artifacts in stores, by their words: a folder is read where it lies, a bucket over the cache."""

import os
import subprocess
import sys

import pytest

from eva_dist.errors import ArtifactNotFoundError, IntegrityError
from eva_dist.store.open_artifact import fetch, open_artifact
from eva_dist.store.store import Store
from tests.small_artifact import FINGERPRINT, contents_of


@pytest.fixture
def folder_store(tmp_path, artifact, cache):
    store = Store(str(tmp_path / "store"))
    store.publish_folder(artifact, "team/name", "v1")
    return store


def test_every_word_for_an_artifact_in_a_folder_store_reads_it_there(folder_store, artifact, cache):
    root, url = folder_store.root, folder_store.root.as_uri()
    commit = folder_store.snapshot(FINGERPRINT).commit
    words = ["team/name", "team/name@v1", f"team/name@{FINGERPRINT}", f"team/name@{commit}"]
    words += [f"{root}/team/name@v1", f"{url}/team/name@v1", f"{url}/team/name", f"{root}/team/name/v1"]
    words += [folder_store.revision_url("team/name", "v1"), folder_store.snapshot_url(FINGERPRINT)]
    for word in words:
        folder = fetch(word, store_url=folder_store.url)
        assert folder.is_relative_to(root) and contents_of(folder) == contents_of(artifact), word
        assert open_artifact(word, folder_store.url).snapshot.commit == commit
    assert not cache.exists()


def test_a_folder_store_whose_view_is_gone_is_read_over_the_cache(folder_store, artifact, cache):
    (folder_store.root / "snapshots" / FINGERPRINT).unlink()
    folder = fetch("team/name@v1", store_url=folder_store.url)
    assert folder.is_relative_to(cache) and contents_of(folder) == contents_of(artifact)
    assert fetch(folder_store.revision_url("team/name", "v1")) == folder
    assert fetch(folder_store.snapshot_url(FINGERPRINT)) == folder


def test_what_is_not_there(folder_store, tmp_path):
    with pytest.raises(ArtifactNotFoundError, match="has no team/name@v2; it has v1"):
        fetch("team/name@v2", store_url=folder_store.url)
    with pytest.raises(ArtifactNotFoundError, match="has no team/name@v2; it has v1"):
        fetch(f"{folder_store.root}/team/name/v2")
    with pytest.raises(ArtifactNotFoundError, match="no artifact at .*nothing: it has no manifest.json"):
        fetch(tmp_path / "nothing")


@pytest.mark.parametrize("change", ["flip", "remove"])
def test_a_folder_that_is_not_its_manifest(artifact, change):
    path = artifact / "weights.bin"
    path.write_bytes(b"\x01" + path.read_bytes()[1:]) if change == "flip" else path.unlink()
    assert fetch(artifact, names=["README.md"]) == artifact
    for read in (lambda: fetch(artifact), lambda: open_artifact(artifact).read("weights.bin")):
        with pytest.raises(IntegrityError, match=r"weights.bin (has sha256|is missing)"):
            read()
    with pytest.raises(IntegrityError, match="does not list other"):
        fetch(artifact, names=["other"])


def test_a_bucket_is_asked_once(artifact, cache, bucket, monkeypatch):
    s3_url = f"{bucket}/asked/once"
    store = Store(s3_url)
    store.publish_folder(artifact, "team/name", "v1")
    told: list[int] = []
    folder = fetch(f"{s3_url}/team/name@v1", progress=told.append)
    assert folder.is_relative_to(cache) and contents_of(folder) == contents_of(artifact)
    assert sum(told) == sum(len(c) for n, c in contents_of(artifact).items() if n != "manifest.json")
    commit = store.snapshot(FINGERPRINT).commit
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for revision in (FINGERPRINT, commit):
        assert contents_of(fetch(f"{s3_url}/team/name@{revision}")) == contents_of(artifact)
    assert open_artifact(f"{s3_url}/team/name@{FINGERPRINT}").where == f"{s3_url}/team/name@{FINGERPRINT}"


def test_a_bit_that_flipped_in_a_bucket_is_not_kept(artifact, cache):
    url = "memory://flipped"
    store = Store(url)
    store.publish_folder(artifact, "team/name", "v1")
    entry = store.snapshot(FINGERPRINT).files["weights.bin"]
    store._objects.put(f"objects/blobs/{entry.sha256[:2]}/{entry.sha256}", b"\x01" + b"0" * (entry.size - 1))
    with pytest.raises(IntegrityError, match="weights.bin has sha256"):
        fetch(f"{url}/team/name", names=["weights.bin"])
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["manifest.json"]


KILLED = """
import os, sys
from pathlib import Path
from eva_dist.store.open_artifact import fetch
from eva_dist.store.store import Store

Store("memory://killed").publish_folder(Path(sys.argv[1]), "team/name", "v1")
Store.read_range = lambda *_: os._exit(9)
fetch("memory://killed/team/name", progress=False)
"""


def test_what_a_killed_fetch_leaves_is_swept(artifact, cache):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", KILLED, artifact], env=environment).returncode == 9
    left = [path for path in cache.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert [path.parent for path in left] == [cache / "incoming"]
    os.utime(left[0], (0, 0))
    Store("memory://after").publish_folder(artifact, "team/name", "v1")
    assert contents_of(fetch("memory://after/team/name")) == contents_of(artifact)
    assert not list((cache / "incoming").iterdir())
