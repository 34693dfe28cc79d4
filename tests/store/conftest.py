"""The same store in a folder, in memory, and in a bucket."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from eva_dist.store.store import Store
from tests.s3_server import s3_server
from tests.small_artifact import write_artifact


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["file", "memory", "s3"])
def store_url(request, tmp_path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{secrets.token_hex(4)}/eva"
    return (tmp_path / "store").as_uri() if request.param == "file" else f"memory://{secrets.token_hex(4)}"


@pytest.fixture
def store(store_url) -> Store:
    return Store(store_url)


@pytest.fixture
def artifact(tmp_path) -> Path:
    return write_artifact(tmp_path / "artifact")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where this test's cache is."""
    monkeypatch.setenv("EVA_DIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"
