"""Words for artifacts: what each one names, and what is none."""

import os

import pytest

from eva_dist.errors import ConfigError, IntegrityError
from eva_dist.store.artifact_ref import RefKind, parse_artifact_ref
from eva_dist.store.open_artifact import fetch
from eva_dist.store.store import Store
from tests.small_artifact import write_artifact

FINGERPRINT = "ab" * 32


@pytest.mark.parametrize(
    ("text", "kind", "url", "repo_id", "revision"),
    [
        ("team/name", RefKind.store, "s3://b/p", "team/name", None),
        ("team/name@rho2.0-tau0.9", RefKind.store, "s3://b/p", "team/name", "rho2.0-tau0.9"),
        ("s3://bucket/team/name", RefKind.store, "s3://bucket", "team/name", None),
        ("s3://bucket/some/prefix/team/name@v1", RefKind.store, "s3://bucket/some/prefix", "team/name", "v1"),
        ("memory://here/team/name@v1", RefKind.store, "memory://here", "team/name", "v1"),
        ("gs://b/team/name@v1", RefKind.store, "gs://b", "team/name", "v1"),
        ("az://b/team/name@v1", RefKind.store, "az://b", "team/name", "v1"),
        ("abfs://box@account.dfs.core.windows.net/p/t/n@v1", RefKind.store,
         "abfs://box@account.dfs.core.windows.net/p", "t/n", "v1"),
        (f"s3://bucket/p/snapshots/{FINGERPRINT}", RefKind.store, "s3://bucket/p", "", FINGERPRINT),
        ("/nowhere/team/name@v1", RefKind.store, "/nowhere", "team/name", "v1"),
        ("file:///nowhere/team/name@v1", RefKind.store, "/nowhere", "team/name", "v1"),
        ("file:///nowhere/of%20old", RefKind.folder, "/nowhere/of old", "", None),
        ("/nowhere/team/name", RefKind.folder, "/nowhere/team/name", "", None),
        ("./team/name", RefKind.folder, "team/name", "", None),
        ("name", RefKind.folder, "name", "", None),
        ("hf://org/name", RefKind.hub, "", "org/name", None),
        ("hf://org/name@v1", RefKind.hub, "", "org/name", "v1"),
        ("hf://org/name@refs/pr/1", RefKind.hub, "", "org/name", "refs/pr/1"),
        ("hf://org/name@my%20run%2F2", RefKind.hub, "", "org/name", "my run/2"),
        ("http://127.0.0.1:8000/org/name@v1", RefKind.hub, "http://127.0.0.1:8000", "org/name", "v1"),
        ("https://host/eva/store/org/name", RefKind.hub, "https://host/eva/store", "org/name", None),
        ("https://host/org/name/tree/refs/pr/2", RefKind.hub, "https://host", "org/name", "refs/pr/2"),
    ],
)  # fmt: skip
def test_words(text, kind, url, repo_id, revision):
    source = parse_artifact_ref(text, "s3://b/p")
    assert (source.text, source.kind, source.url, source.repo_id, source.revision) == (
        text, kind, url, repo_id, revision,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ftp://host/org/name", "ftp:// is not known"),
        ("s3://bucket/name", "a bucket, a namespace and a name are needed"),
        ("s3:///team/name", "a bucket, a namespace and a name are needed"),
        ("s3://bucket/team/.hidden", "must be namespace/name"),
        ("s3://bucket/team/name@", "revision"),
        ("team/name@a b", "artifact.revision='a b'"),
        ("hf://name", "'name' is no org/name"),
        ("hf://org/name/more", "'org/name/more' is no org/name"),
        ("hf://org/name@", "the revision '' is none"),
        ("hf://org/name@refs/../x", "the revision 'refs/../x' is none"),
        ("hf://org/name@a%0Ab", "is none"),
        ("http://host/name", "no org/name"),
        ("http://host", "no org/name"),
        ("http:///org/name", "by host"),
        ("http://host/org/name?x=1", "by host"),
        ("file://host/folder", "of this machine"),
    ],
)
def test_what_is_no_source_is_answered_with_the_grammar(text, why):
    with pytest.raises(ConfigError) as caught:
        parse_artifact_ref(text)
    assert why in str(caught.value) and "hf://org/name[@revision]" in str(caught.value)


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="must hold no password; set EVA_DIST_TOKEN") as caught:
        parse_artifact_ref("https://me:secret@host/org/name")
    assert "secret" not in str(caught.value)


def test_a_folder_with_a_manifest_is_one_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("team/name", "team/name@v1"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        assert parse_artifact_ref(name, "s3://b").kind is RefKind.store
        (folder / "manifest.json").write_text("{}")
        assert parse_artifact_ref(name, "s3://b").kind is RefKind.folder
        assert parse_artifact_ref(str(folder)).url == parse_artifact_ref(folder.as_uri()).url == str(folder)


def test_a_name_below_the_root_of_a_store_of_folders(tmp_path):
    (tmp_path / "objects").mkdir()
    (tmp_path / "team/name").mkdir(parents=True)
    source = parse_artifact_ref(tmp_path / "team/name")
    assert (source.kind, source.url, source.repo_id) == (RefKind.store, str(tmp_path), "team/name")


def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path):
    folder = write_artifact(tmp_path / "artifact")
    (folder / "weights.bin").unlink()
    os.mkfifo(folder / "weights.bin")
    with pytest.raises(IntegrityError, match=r"weights\.bin cannot be read: not a regular file"):
        fetch(folder)
    with pytest.raises(IntegrityError, match="is missing though the manifest lists it"):
        Store(str(tmp_path / "store")).publish_folder(folder, "team/name", "v1")
