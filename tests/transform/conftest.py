"""Runs whose sums are kept, and a way to merge them."""

import pytest

from eva_dist.store.store import Store
from eva_dist.transform.merge import merge_and_publish
from tests.artifact.conftest import base_folder, build, built  # noqa: F401, fixtures of test_uniform_rank
from tests.summed_runs import ROWS, publish_run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(str(tmp_path_factory.mktemp("runs") / "store"))


@pytest.fixture(scope="module")
def runs(store):
    """The sources by name; tests only read them."""
    return {name: publish_run(store, name, rows) for name, rows in ROWS.items()}


@pytest.fixture
def add(runs, tmp_path):
    """Merge these sources into a store of its own, unless told which."""

    def start(*names, weights=(), into="store", repo_id=None, revision=None, **changes):
        sources = [runs[name].url if name in runs else str(name) for name in names]
        return merge_and_publish(sources, weights, changes, str(tmp_path / into), repo_id, revision)

    return start
