"""Nothing in a manifest is believed before it is checked."""

import hashlib
import json

import pytest

from eva_dist.errors import ArtifactNotFoundError, IntegrityError
from eva_dist.store.snapshot import folder_snapshot, lacking, read_snapshot
from tests.store.artifacts import FILES, ONE, described, write_artifact


def manifest(files: object, **more: object) -> bytes:
    return json.dumps({"files": files} | more).encode()


def test_a_sound_manifest():
    content = manifest({"b": described(b"b"), "a/c": described(b"cc")}, fingerprint=ONE)
    snapshot = read_snapshot(content, ONE)
    assert list(snapshot.files) == ["a/c", "b", "manifest.json"] and snapshot.fingerprint == ONE
    assert snapshot.entry("a/c").size == 2 and snapshot.entry("a/c").sha256 == hashlib.sha256(b"cc").hexdigest()
    assert snapshot.commit == hashlib.sha256(content).hexdigest()[:40] and snapshot.size == 3 + len(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": []}', b'{"files": null}', b"\xff", b"[" * 100_000])
def test_what_is_no_manifest(content):
    with pytest.raises(IntegrityError, match=r"manifest\.json is no manifest"):
        read_snapshot(content)


@pytest.mark.parametrize(
    "path",
    [
        "../x", "a/../x", "/etc/passwd", "a//b", "", ".", "a/", "/", "..", "a/./b", "C:\\x", "a\\..\\b", "a\0b", "a\nb",
        "\x1b[2J", "a:b", "x" * 256, "é" * 128, "con.", "a ", "\ud800", "\u202egnp.exe",
    ],
)  # fmt: skip
def test_paths_that_leave_the_folder_or_mean_something_else_elsewhere(path):
    with pytest.raises(IntegrityError, match="must be a plain path inside the artifact's folder"):
        read_snapshot(manifest({path: described(b"")}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "x" * 64}, "must be 64 lower-case hex digits"),
        ({"sha256": "../../../etc/passwd"}, "must be 64 lower-case hex digits"),
        ({"sha256": None}, "must be 64 lower-case hex digits"),
        ({"sha256": "A" * 64}, "must be 64 lower-case hex digits"),
        ({"size": -1}, "must be a number of bytes"),
        ({"size": True}, "must be a number of bytes"),
        ({"size": 1.5}, "must be a number of bytes"),
        ({"size": "3"}, "must be a number of bytes"),
        ({"size": 1 << 60}, "must be a number of bytes"),
    ],
)
def test_hashes_and_sizes_that_are_none(change, message):
    with pytest.raises(IntegrityError, match=message):
        read_snapshot(manifest({"a": described(b"") | change}))


@pytest.mark.parametrize("files", [("a", "A"), ("a", "a/b"), ("A/c", "a"), ("manifest.json",), ("Manifest.JSON",)])
def test_paths_that_are_one_file_twice(files):
    with pytest.raises(IntegrityError, match="a path twice, itself, or a file as a folder"):
        read_snapshot(manifest({path: described(b"") for path in files}))


def test_too_many_files():
    with pytest.raises(IntegrityError, match="lists 10001 files"):
        read_snapshot(manifest({str(i): described(b"") for i in range(10_001)}))


def test_another_artifacts_manifest():
    with pytest.raises(IntegrityError, match=f"is of the artifact '22222222', not of {ONE}"):
        read_snapshot(manifest({}, fingerprint="22222222"), ONE)


def test_a_folder(tmp_path):
    folder = write_artifact(tmp_path / "here")
    snapshot = folder_snapshot(folder)
    assert lacking(folder, snapshot) == []
    (folder / FILES[0]).write_text("short")
    (folder / FILES[1]).unlink()
    assert lacking(folder, snapshot) == list(FILES)
    with pytest.raises(ArtifactNotFoundError, match=r"no artifact at .*; check the path"):
        folder_snapshot(tmp_path)
