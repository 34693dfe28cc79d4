"""Unchanged huggingface_hub against the gateway, over each kind of store."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from tests.gateway.conftest import FIRST, REPO, SECOND
from tests.gateway.serving import FILES, sha256


@pytest.fixture
def api(served) -> HfApi:
    return HfApi(endpoint=served.endpoint, token=False)


def test_a_file_by_every_name_that_a_revision_has(served, tmp_path):
    snapshot = served.first
    for revision in (FIRST, snapshot.commit, snapshot.fingerprint):
        path = hf_hub_download(
            REPO, "big.bin", revision=revision, endpoint=served.endpoint, cache_dir=tmp_path / revision, token=False
        )
        assert Path(path).read_bytes() == FILES["big.bin"]
        assert Path(path).parent.name == snapshot.commit
        assert Path(path).resolve().name == sha256(FILES["big.bin"])  # the client's blob is named by our ETag


def test_no_revision_means_the_one_that_moved_last(served, tmp_path):
    path = hf_hub_download(REPO, "more.txt", endpoint=served.endpoint, cache_dir=tmp_path, token=False)
    assert Path(path).read_bytes() == b"more\n" and Path(path).parent.name == served.second.commit


def test_a_whole_snapshot(served, tmp_path):
    folder = Path(snapshot_download(REPO, revision=FIRST, endpoint=served.endpoint, cache_dir=tmp_path, token=False))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {**FILES, "manifest.json": served.first.content}


def test_a_snapshot_into_a_folder_and_only_what_has_changed_comes_again(served, tmp_path):
    ask = {"endpoint": served.endpoint, "local_dir": tmp_path / "here", "cache_dir": tmp_path, "token": False}
    snapshot_download(REPO, revision=FIRST, allow_patterns=["*.md", "plots/*"], **ask)
    assert (tmp_path / "here" / "plots" / "deep" / "own.svg").read_bytes() == FILES["plots/deep/own.svg"]
    assert not (tmp_path / "here" / "big.bin").exists()
    snapshot_download(REPO, revision=SECOND, **ask)
    assert (tmp_path / "here" / "more.txt").read_bytes() == b"more\n"


def test_model_info(served, api):
    info = api.model_info(REPO, revision=FIRST, files_metadata=True)
    assert (info.id, info.author, info.sha, info.library_name) == (REPO, "team", served.first.commit, "peft")
    assert info.private is False and info.gated is False and {"eva", "lora", "base_model:org/base"} <= set(info.tags)
    assert info.card_data.base_model == "org/base" and info.card_data.library_name == "peft"
    assert datetime.now(UTC) - info.last_modified < timedelta(minutes=10)
    assert {file.rfilename for file in info.siblings} == {*FILES, "manifest.json"}
    big = next(file for file in info.siblings if file.rfilename == "big.bin")
    assert (big.size, big.lfs.sha256) == (len(FILES["big.bin"]), sha256(FILES["big.bin"]))
    assert api.model_info(REPO).sha == served.second.commit
    assert [file.size for file in api.model_info(REPO).siblings] == [None] * (len(FILES) + 2)


def test_models_are_listed_searched_and_filtered(api):
    assert [model.id for model in api.list_models()] == ["others/thing", REPO]
    assert [model.id for model in api.list_models(search="NAM")] == [REPO]
    assert [model.id for model in api.list_models(author="others")] == ["others/thing"]
    assert [model.id for model in api.list_models(filter=["eva", "base_model:org/other"])] == [REPO]
    assert not [*api.list_models(filter="gguf")] and not [*api.list_models(pipeline_tag="text-generation")]
    assert [model.id for model in api.list_models(limit=1)] == ["others/thing"]
    assert [model.id for model in api.list_models(sort="created_at", full=True)] == ["others/thing", REPO]
    assert next(iter(api.list_models(author="team", full=True))).siblings is not None


def test_trees_and_paths(served, api):
    assert sorted(api.list_repo_files(REPO, revision=FIRST)) == sorted([*FILES, "manifest.json"])
    top = {item.path: item for item in api.list_repo_tree(REPO, revision=FIRST)}
    assert isinstance(top["plots"], RepoFolder) and isinstance(top["big.bin"], RepoFile) and "plots/deep" not in top
    assert top["big.bin"].lfs.sha256 == sha256(FILES["big.bin"]) and top["big.bin"].xet_hash is None
    below = [item.path for item in api.list_repo_tree(REPO, "plots", revision=FIRST, recursive=True)]
    assert below == ["plots/deep", "plots/deep/own.svg", "plots/ranks.png"]
    assert [item.path for item in api.list_repo_tree(REPO, "plots", revision=FIRST)] == [
        "plots/deep",
        "plots/ranks.png",
    ]
    some = api.get_paths_info(REPO, ["plots", "empty.txt", "none"], revision=FIRST, expand=True)
    assert [(type(item), item.path) for item in some] == [(RepoFolder, "plots"), (RepoFile, "empty.txt")]
    assert some[1].last_commit.oid == served.first.commit
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "none", revision=FIRST))


def test_refs_and_commits(served, api):
    branches = {ref.name: ref.target_commit for ref in api.list_repo_refs(REPO).branches}
    assert branches == {"main": served.second.commit, FIRST: served.first.commit, SECOND: served.second.commit}
    assert [commit.commit_id for commit in api.list_repo_commits(REPO, revision=FIRST)] == [served.first.commit]


def test_whether_things_exist(api):
    assert api.repo_exists(REPO) and not api.repo_exists("team/none")
    assert api.revision_exists(REPO, FIRST) and not api.revision_exists(REPO, "none")
    assert api.file_exists(REPO, "big.bin") and not api.file_exists(REPO, "none.bin")
    api.auth_check(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.auth_check("team/none")


def test_the_right_errors_rise(served, api, tmp_path):
    ask = {"endpoint": served.endpoint, "cache_dir": tmp_path, "token": False}
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("team/none", "x", **ask)
    with pytest.raises(RevisionNotFoundError, match=f"has no revision rho9; it has {FIRST}, {SECOND}"):
        hf_hub_download(REPO, "x", revision="rho9", **ask)
    with pytest.raises(EntryNotFoundError, match="has no none.bin"):
        hf_hub_download(REPO, "none.bin", revision=FIRST, **ask)
    # the client remembers what a commit lacks
    assert (tmp_path / "models--team--name" / ".no_exist" / served.first.commit / "none.bin").is_file()
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("team/none", **ask)
    with pytest.raises(RevisionNotFoundError):
        snapshot_download(REPO, revision="refs/pr/1", **ask)
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info(REPO)
    with pytest.raises(HfHubHTTPError, match="only serves"):
        api.create_repo("team/new", exist_ok=True)


def test_a_file_system(served):
    files = HfFileSystem(endpoint=served.endpoint, token=False, skip_instance_cache=True)
    assert files.ls(f"{REPO}@{FIRST}/plots", detail=False) == [
        f"{REPO}@{FIRST}/plots/deep",
        f"{REPO}@{FIRST}/plots/ranks.png",
    ]
    assert files.glob(f"{REPO}@{FIRST}/**/*.png") == [f"{REPO}@{FIRST}/plots/ranks.png"]
    assert files.cat_file(f"{REPO}@{FIRST}/big.bin", start=5, end=70_000) == FILES["big.bin"][5:70_000]
    assert files.read_bytes(f"{REPO}@{FIRST}/empty.txt") == b""
    with files.open(f"{REPO}@{FIRST}/big.bin", block_size=1 << 20) as opened:
        opened.seek(2_000_000)
        assert opened.read(1000) == FILES["big.bin"][2_000_000:2_001_000]
        assert opened.read() == FILES["big.bin"][2_001_000:]
    assert files.info(f"{REPO}@{FIRST}/big.bin", expand_info=True)["last_commit"].oid == served.first.commit
    assert files.info(f"{REPO}@{FIRST}", expand_info=True)["type"] == "directory"
    assert files.exists(f"{REPO}/more.txt") and not files.exists(f"{REPO}@{FIRST}/more.txt")
    with pytest.raises(FileNotFoundError):
        files.open("team/none/x")


def test_the_metadata_that_the_client_builds_on(served, api):
    url = hf_hub_url(REPO, "with blank, ü & 100%.txt", revision=FIRST, endpoint=served.endpoint)
    found = api.get_hf_file_metadata(url=url, token=False)
    assert (found.commit_hash, found.size) == (served.first.commit, 4) and found.location == url
    assert found.etag == sha256(b"odd\n") and found.xet_file_data is None
