"""Patterns of names, and facts of manifests that say odd things."""

import json

import pytest

from eva_dist.artifact.listing import fits, nearest, short_path
from eva_dist.artifact.summary import read_summary
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
    odd = read_summary(snapshot(status=[1], model="x", r=True, config={"eva": {"rho": "2", "tau": 1e400, "whiten": 1}}))
    assert odd.status == "unknown"
    assert (odd.base_model, odd.r, odd.rho, odd.tau, odd.data, odd.whiten) == (None,) * 5 + (False,)
    said = {"status": "done", "r": 8, "config": {"eva": {"rho": 2, "tau": 0.99}, "data": {"path": "a.txt"}}}
    sound = read_summary(snapshot(**said))
    assert (sound.status, sound.r, sound.rho, sound.tau, sound.data) == ("done", 8, 2.0, 0.99, "a.txt")
    assert sound.size == len(json.dumps({"files": {}, **said}))


@pytest.mark.parametrize(
    "said",
    [
        {"config": {"eva": {"r": 8, "rho": 2}}},  # `ls` had no r, and a page r = 8
        {"decisive": {"eva": {"r": 4, "tau": 0.5, "whiten": True}}},
        {"r": 4, "config": {"eva": {"r": 8.0}, "model": {"name_or_path": "x"}, "data": {"path": "c4", "name": "en"}}},
        {"data": {"digest": "ef" * 32}, "created": "2026-01-02"},
        {"status": "", "model": {"id": "  "}, "created": "yesterday"},
    ],
)
def test_a_list_says_what_a_page_says(said):
    page, row = read_summary(snapshot(**said), "ab" * 32), read_summary(snapshot(**said)).to_dict()
    for key in ("r", "rho", "tau", "whiten", "status", "base_model", "data"):
        assert row[key] == getattr(page, key)
    assert row["created"] == (page.created and page.created.isoformat())
    assert row["r"] is None or type(row["r"]) is int


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
