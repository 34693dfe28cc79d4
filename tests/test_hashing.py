"""What names things: settings, whatever the order of their keys, and files."""

import hashlib
import os

import pytest

from eva_dist.hashing import fingerprint, sha256_of_file


def test_the_order_of_keys_does_not_name_another_thing():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0})


def test_a_file_is_named_by_its_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content := bytes(range(256)) * 8192)
    assert sha256_of_file(path) == hashlib.sha256(content).hexdigest()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        sha256_of_file(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        sha256_of_file(tmp_path)
