"""Our own client against our gateway: names, commits and fingerprints, parts, and no network where none is needed."""

import pytest

from eva_dist.errors import ArtifactNotFoundError, StoreError
from eva_dist.store.open_artifact import fetch, open_artifact
from eva_dist.store.store import Store
from tests.gateway import serving
from tests.small_artifact import contents_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVA_DIST_CACHE", str(tmp_path / "cache"))


def test_every_revision_of_a_gateway_comes_whole(tmp_path):
    store = Store(str(tmp_path / "store"))
    snapshot = serving.put(store, "team/name", "v1", serving.FILES)
    whole = {**serving.FILES, "manifest.json": snapshot.content}
    with serving.gateway(store) as endpoint:
        for revision in ("v1", "main", snapshot.commit, snapshot.fingerprint):
            folder = fetch(f"{endpoint}/team/name@{revision}")
            assert contents_of(folder) == whole
        part = open_artifact(f"{endpoint}/team/name@v1").read_range("big.bin", 5, 300)
        assert part == serving.FILES["big.bin"][5:300]
        with pytest.raises(ArtifactNotFoundError, match="has no revision v2"):
            fetch(f"{endpoint}/team/name@v2")
        with pytest.raises(ArtifactNotFoundError, match="has no team/nam,.*team/name"):
            fetch(f"{endpoint}/team/nam@v2")
    for revision in (snapshot.commit, snapshot.fingerprint):
        assert contents_of(fetch(f"{endpoint}/team/name@{revision}")) == whole
    with pytest.raises(StoreError, match="cannot be reached"):
        fetch(f"{endpoint}/team/name@v1")
