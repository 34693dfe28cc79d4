"""Pushing to the Hub with the real client: one commit, a card that is right there, and nothing half-done."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import eva_dist
from eva_dist.artifact.restore import restore_artifact
from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError, StoreError
from eva_dist.store.open_artifact import fetch, open_artifact
from eva_dist.transform.push_to_hub import push_to_hub
from tests.fake_hub import FakeHub, running
from tests.own_run import own_run

REPO = "org/tiny-eva"
pytestmark = [
    pytest.mark.usefixtures("no_figures"),
    # huggingface_hub 2.4 uploads files in a way that httpx2 deprecates
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def artifact(tiny_model, words_file, no_figures, tmp_path_factory) -> Path:
    """The artifact of a run, in a folder with a telling name."""
    from tests.tiny_run import tiny_config

    return own_run(tiny_config(tiny_model, words_file, tmp_path_factory.mktemp("secret-folder"))).folder


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """A Hub where the token `writer` may write to `org`, and whoever runs the test has that token."""
    monkeypatch.setenv("EVA_DIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with running() as found:
        found.tokens["writer"] = {"org"}
        monkeypatch.setenv("EVA_DIST_TOKEN", "writer")
        yield found


@pytest.fixture
def push(hub, artifact):
    def start(source=artifact, repo_id=REPO, **settings):
        return push_to_hub(source, repo_id, endpoint=hub.url, **settings)

    return start


def test_what_was_pushed_is_the_artifact(hub, push, artifact):
    assert push() == f"{hub.url}/{REPO}"
    repo = hub.repos[REPO]
    assert len(repo.messages) == 2 and repo.messages[1].startswith("EVA initialisation ")
    ours, theirs = open_artifact(artifact).snapshot, open_artifact(f"{hub.url}/{REPO}").snapshot
    assert theirs.fingerprint == ours.fingerprint and theirs.files.keys() == ours.files.keys()
    assert repo.files().keys() == {*ours.files, ".gitattributes"}
    changed = {path for path in ours.files if ours.files[path] != theirs.files[path]}
    assert changed == {"README.md", "adapter_config.json", "manifest.json"}
    folder = fetch(f"{hub.url}/{REPO}")  # verifies every file
    assert restore_artifact(folder).provenance.decisive == restore_artifact(artifact).provenance.decisive
    loaded = eva_dist.load_eva_state_dict(f"{hub.url}/{REPO}", prefix="")
    truth = load_file(artifact / "eva_state_dict.safetensors")
    assert loaded.keys() == truth.keys() and all(torch.equal(loaded[name], truth[name]) for name in truth)


def test_nothing_that_was_pushed_names_a_folder_of_this_machine(hub, push, tiny_model, words_file, artifact):
    push()
    for path, content in hub.repos[REPO].files().items():
        for place in (tiny_model.parent, words_file.parent, *artifact.parents[:3]):
            assert str(place).encode() not in content, path


def test_the_card_is_right_where_it_is_read(hub, push, tiny_model, monkeypatch):
    push(revision="v1", base_model="org/Tiny-Llama")
    text = hub.repos[REPO].files("v1")["README.md"].decode()
    data = ModelCard(text).data
    assert (data.base_model, data.get("base_model_relation"), data.library_name) == (
        "org/Tiny-Llama",
        "adapter",
        "peft",
    )
    assert data.tags == ["eva", "lora", "eva_dist"] and data.datasets is None and data.license is None
    assert f"# {REPO} (v1)" in text
    code = next(block for block in text.split("```") if "load_eva_state_dict" in block)
    assert f"eva_dist.load_eva_state_dict('{hub.url}/{REPO}@v1')" in code
    assert "AutoModelForCausalLM.from_pretrained('org/Tiny-Llama')" in code
    names: dict = {}
    exec(code.removeprefix("python").replace("'org/Tiny-Llama'", repr(str(tiny_model))), names)
    assert isinstance(names["model"], PeftModel)
    assert json.loads(hub.repos[REPO].files("v1")["adapter_config.json"])["base_model_name_or_path"] == "org/Tiny-Llama"


def test_on_the_hub_itself_peft_finds_the_adapter_by_name(hub, artifact, tiny_model, monkeypatch):
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "writer")
    assert push_to_hub(artifact, REPO, revision="v1") == f"{hub.url}/{REPO}/tree/v1"
    text = hub.repos[REPO].files("v1")["README.md"].decode()
    assert f"PeftModel.from_pretrained(base, '{REPO}', revision='v1', is_trainable=True)" in text
    assert f"eva_dist.load_eva_state_dict('hf://{REPO}@v1')" in text
    assert "base_model" not in ModelCard(text).data.to_dict() and "  # your copy of it" in text
    config = json.loads(hub.repos[REPO].files("v1")["adapter_config.json"])
    assert config["base_model_name_or_path"] == tiny_model.name
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), fetch(f"hf://{REPO}@v1"))


def test_the_same_again_makes_no_commit_and_a_new_one_does(hub, push, artifact, tmp_path):
    push()
    push()
    assert len(hub.repos[REPO].messages) == 2
    hub.repos[REPO].files()["NOTES.md"] = b"a person's own"
    more = shutil.copytree(artifact, tmp_path / "more")
    (more / "extra.txt").write_bytes(b"")
    manifest = json.loads((more / "manifest.json").read_text())
    empty = {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size": 0}
    manifest["files"]["extra.txt"] = empty
    (more / "manifest.json").write_text(json.dumps(manifest))
    push(more)
    assert {"extra.txt", "NOTES.md"} <= hub.repos[REPO].files().keys()
    push()
    assert "extra.txt" not in hub.repos[REPO].files() and "NOTES.md" in hub.repos[REPO].files()
    assert len(hub.repos[REPO].messages) == 4


@pytest.mark.parametrize("branch", ["v1", "rho2.0-tau0.9", "my run/2"])
def test_a_branch_never_shows_another_artifact(hub, push, branch):
    push()
    repo, seen = hub.repos[REPO], []

    def look(method, path):
        seen.append(set(repo.files(branch)) if branch in repo.branches else None)

    hub.fail = look
    url = push(revision=branch)
    hub.fail = lambda method, path: None
    assert None in seen and {".gitattributes"} in seen and len(seen) > 4
    assert all(files in (None, {".gitattributes"}) for files in seen)
    assert fetch(url).is_dir() and open_artifact(url).snapshot.manifest["revision"] == branch


def test_private_is_asked_for_and_a_token_that_is_given_is_used_throughout(hub, push, monkeypatch):
    monkeypatch.setenv("EVA_DIST_TOKEN", "of somebody else")
    push(private=True, token="writer")
    assert hub.repos[REPO].private
    push(private=True, token="writer")
    assert {one.token for one in hub.asked if "/lfs/" not in one.path} == {"writer"}


def commits(hub: FakeHub) -> int:
    return sum(len(repo.messages) for repo in hub.repos.values())


def test_who_may_not_write_is_told_so(hub, push, monkeypatch):
    with pytest.raises(StoreError, match="the token may not write there .*rights to write to other"):
        push(repo_id="other/name")
    with pytest.raises(StoreError, match="does not know the token"):
        hub.fail = lambda method, path: 401 if method == "POST" else None
        push()
    hub.fail = lambda method, path: None
    monkeypatch.delenv("EVA_DIST_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "of the Hub")
    hub.asked.clear()
    with pytest.raises(StoreError, match="no token to push with; set EVA_DIST_TOKEN"):
        push()
    assert hub.repos == {} and hub.asked == []


def test_without_create_there_must_be_repository_and_branch(hub, push):
    with pytest.raises(ArtifactNotFoundError, match="no such repository"):
        push(create=False)
    push()
    with pytest.raises(ArtifactNotFoundError, match="no such branch"):
        push(create=False, revision="v1")
    assert hub.repos[REPO].branches.keys() == {"main"}


@pytest.mark.parametrize("broken", ["/preupload/", "/lfs/", "/commit/", "/objects/batch"])
def test_a_push_that_fails_leaves_the_branch_as_it_was(hub, push, broken, monkeypatch):
    push(revision="v1")
    before = dict(hub.repos[REPO].branches)
    hub.lfs.clear()
    hub.repos[REPO].files("v1").pop("eva_state_dict.safetensors")
    hub.fail = lambda method, path: 400 if broken in path else None
    with pytest.raises(StoreError, match="answered 400|nothing was committed"):
        push(revision="v1")
    assert hub.repos[REPO].branches == before


def test_a_push_between_ours_is_not_overwritten(hub, push, tmp_path):
    push()

    def other(method, path):
        if "/preupload/" in path:
            repo = hub.repos[REPO]
            repo.commit("main", repo.files() | {"other.txt": b"x"}, "other")

    hub.fail = other
    hub.repos[REPO].files().pop("README.md")
    with pytest.raises(StoreError, match="someone else pushed there meanwhile"):
        push()


def test_nobody_there_and_offline(artifact, monkeypatch, hub):
    with pytest.raises(StoreError, match="cannot be reached"):
        push_to_hub(artifact, REPO, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set; unset it to push"):
        push_to_hub(artifact, REPO, endpoint=hub.url)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"repo_id": "name"}, "repo_id=name must be org/name"),
        ({"repo_id": "org/../name"}, "must be org/name"),
        ({"base_model": "/srv/model"}, "base_model=/srv/model must be a name on the Hub"),
    ],
)
def test_names_that_are_none(push, hub, settings, why):
    with pytest.raises(ConfigError, match=why):
        push(**settings)
    assert hub.asked == []


def test_a_damaged_artifact_is_not_pushed(hub, push, artifact, tmp_path):
    damaged = shutil.copytree(artifact, tmp_path / "damaged")
    (damaged / "spectrum.parquet").write_bytes(b"")
    with pytest.raises(IntegrityError, match="spectrum.parquet has sha256"):
        push(damaged)
    assert hub.asked == []
