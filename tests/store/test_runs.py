"""A run publishes to a bucket as it does to a folder, and is answered from there."""

from pathlib import Path

import pytest

from eva_dist.config import StoreConfig
from eva_dist.run.prepare import prepare
from eva_dist.run.publish import answer
from eva_dist.store.store import Store
from eva_dist.store.verify import verify_store
from tests.own_run import own_run

pytestmark = pytest.mark.usefixtures("no_figures")


def test_the_same_run_anywhere_gives_the_same_bytes_and_is_computed_once(configure, store, tmp_path):
    config = configure(store={"url": store.url})
    published = own_run(config)
    assert published.url == store.revision_url("tests/tiny", "rho2.0-tau0.9")
    assert [checked.problem for checked in verify_store(store) if checked.problem] == []
    found = answer(prepare(config))
    assert found is not None and (found.url, found.fingerprint) == (published.url, published.fingerprint)
    elsewhere = own_run(configure(store={"url": str(tmp_path / "other")}))
    for name in ("eva_state_dict.safetensors", "adapter_model.safetensors", "components.safetensors"):
        assert elsewhere.manifest["files"][name] == published.manifest["files"][name]


def test_checkpoints_of_a_bucket_are_kept_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("EVA_DIST_CACHE", str(tmp_path))
    one, other = Store("s3://bucket/one").checkpoints, Store("s3://bucket/other").checkpoints
    assert one.is_relative_to(tmp_path) and one != other
    assert Store(StoreConfig().url).checkpoints == Path(StoreConfig().url).absolute() / ".checkpoints"
