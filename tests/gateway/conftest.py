"""Gateways over the same two artifacts in a folder, in memory and in a bucket."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from eva_dist.store.snapshot import Snapshot
from eva_dist.store.store import Store
from tests.gateway.serving import FILES, gateway, put
from tests.s3_server import s3_server

REPO = "team/name"
FIRST, SECOND = "rho2.0-tau0.99", "rho3.0-tau0.99"


@dataclass(frozen=True)
class Served:
    """A running gateway, its store, and the artifacts under FIRST and SECOND; SECOND moved last.

    In a bucket both may have moved in one second; then the last name counts.
    """

    endpoint: str
    store: Store
    first: Snapshot
    second: Snapshot


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def quiet_clients(monkeypatch) -> None:
    """No client of these tests waits between tries, or shows a bar; and all see what was just published."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr("eva_dist.gateway.index._PATIENCE_S", 20.0)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture(scope="module", params=["file", "memory", "s3"])
def served(request, tmp_path_factory) -> Iterator[Served]:
    if request.param == "s3":
        url = f"{request.getfixturevalue('bucket')}/{secrets.token_hex(4)}"
    else:
        url = str(tmp_path_factory.mktemp("store")) if request.param == "file" else f"memory://{secrets.token_hex(4)}"
    store = Store(url)
    first = put(store, REPO, FIRST, FILES, model={"id": "org/base"}, status="done")
    second = put(store, REPO, SECOND, {**FILES, "more.txt": b"more\n"}, model={"id": "org/other"})
    put(store, "others/thing", "v1", {"one.txt": b"1"})
    with gateway(store) as endpoint:
        yield Served(endpoint, store, first, second)
