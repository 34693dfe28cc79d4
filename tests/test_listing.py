"""Patterns of names, and facts of manifests that say odd things."""

import json

import pytest

from eva_dist.listing import facts_of, fits, nearest, short_path
from eva_dist.store.snapshot import read_snapshot


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("team", True),
        ("tiny", True),
        ("t*y", True),
        ("team/tiny", True),
        ("team/", True),
        ("team/*@rho2*", True),
        ("team/tiny@rho2.0", True),
        ("@rho?.0", True),
        ("*@*", True),
        ("team/tiny@", True),
        ("TEAM", False),
        ("tea", False),
        ("team/tin", False),
        ("team/tiny@rho1", False),
        ("lab/*", False),
        ("@rho", False),
    ],
)
def test_patterns(pattern, expected):
    assert fits("team/tiny", "rho2.0", pattern) is expected


def snapshot(**manifest):
    return read_snapshot(json.dumps({"files": {}, **manifest}).encode())


def test_what_has_another_type_is_not_known():
    odd = facts_of(snapshot(status=[1], model="x", r=True, config={"eva": {"rho": "2", "tau": 1e400, "whiten": 1}}))
    assert odd.status == "unknown"
    assert (odd.base_model, odd.r, odd.rho, odd.tau, odd.whiten, odd.data) == (None,) * 6
    said = {"status": "done", "r": 8, "config": {"eva": {"rho": 2, "tau": 0.99}, "data": {"path": "a.txt"}}}
    sound = facts_of(snapshot(**said))
    assert (sound.status, sound.r, sound.rho, sound.tau, sound.data) == ("done", 8, 2.0, 0.99, "a.txt")
    assert sound.size == len(json.dumps({"files": {}, **said}))


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/data/models/llama", "llama"),
        ("org/llama", "org/llama"),
        ("gpt2", "gpt2"),
        ("a/b/c.jsonl", "c.jsonl"),
        (None, None),
    ],
)
def test_paths_are_shown_by_their_ends(path, short):
    assert short_path(path) == short


def test_the_nearest_names_come_first():
    assert next(nearest("team/tinny", ["lab/x", "team/tiny", "team/other"])) == "team/tiny"
    assert list(nearest("zzz", ["team/tiny"])) == []
