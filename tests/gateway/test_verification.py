"""Blobs whose hashing takes longer than clients wait, and blobs that change while they are hashed."""

import asyncio
import http.client
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from eva_dist.gateway import downloads, verification
from eva_dist.store.store import Store
from eva_dist.store.store_reader import blob_key
from tests.gateway.conftest import FIRST, REPO
from tests.gateway.serving import ask, gateway, put, sha256

LARGE = bytes(range(256)) * (50 << 10)  # 12.5 MB
URL = f"/{REPO}/resolve/{FIRST}/large.bin"
WINDOW = downloads._WINDOW_BYTES


@pytest.fixture(params=["folder", "memory"])
def slow(request, tmp_path, monkeypatch) -> tuple[Store, threading.Event]:
    """A store whose blobs are not hashed before the event is set."""
    store = Store(str(tmp_path / "store") if request.param == "folder" else f"memory://{secrets.token_hex(4)}")
    put(store, REPO, FIRST, {"large.bin": LARGE, "small.txt": b"small"})
    release, hash_file, stream = threading.Event(), verification._hash_file, store.stream

    def hash_slowly(*given):
        assert release.wait(30)
        return hash_file(*given)

    async def stream_slowly(entry, start=0, end=None) -> AsyncIterator[bytes]:
        if end - start > WINDOW:  # for the hash; what is sent is fetched in windows
            assert await asyncio.to_thread(release.wait, 30)
        async for chunk in stream(entry, start, end):
            yield chunk

    monkeypatch.setattr(verification, "_hash_file", hash_slowly)
    monkeypatch.setattr(store, "stream", stream_slowly)
    monkeypatch.setattr(downloads, "_WHOLE_PATIENCE_S", 0.05)
    monkeypatch.setattr(downloads, "_RANGE_PATIENCE_S", 0.05)
    return store, release


@contextmanager
def released(release: threading.Event) -> Iterator[None]:
    """Let what waits go on in the end, whatever happens."""
    try:
        yield
    finally:
        release.set()


def damage(store: Store) -> bytes:
    """Change the first byte of the large blob, and return its bytes."""
    content = b"!" + LARGE[1:]
    if store.root is not None:
        (store.root / blob_key(sha256(LARGE))).chmod(0o644)
    store._objects.put(blob_key(sha256(LARGE)), content)
    return content


def test_a_client_has_its_file_before_the_hash_is_done(slow, tmp_path, monkeypatch):
    store, release = slow
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 3)
    with gateway(store) as endpoint, released(release):
        path = hf_hub_download(REPO, "large.bin", revision=FIRST, endpoint=endpoint, cache_dir=tmp_path, token=False)
        assert Path(path).read_bytes() == LARGE and not release.is_set()
        part = ask(endpoint, URL, Range="bytes=5-9")  # what was hashed on the way is known now
        assert (part.status, part.body) == (206, LARGE[5:10])


def test_the_end_of_a_damaged_file_is_never_sent(slow, tmp_path):
    store, release = slow
    damaged = damage(store)
    with gateway(store) as endpoint, released(release):
        with pytest.raises(http.client.IncompleteRead) as short:
            ask(endpoint, URL)
        assert damaged.startswith(short.value.partial) and len(short.value.partial) <= len(LARGE) - len(LARGE) % WINDOW
        for headers in ({}, {"Range": "bytes=0-9"}):
            assert ask(endpoint, URL, **headers).status == 409
        release.set()
        with pytest.raises(HfHubHTTPError, match=r"not those that manifest\.json promises"):
            hf_hub_download(REPO, "large.bin", revision=FIRST, endpoint=endpoint, cache_dir=tmp_path, token=False)


def test_a_part_waits_for_the_verdict_and_is_told_when_to_come_again(slow):
    store, release = slow
    with gateway(store) as endpoint, released(release):
        early = ask(endpoint, URL, Range="bytes=5-9")
        assert early.status == 503 and int(early.headers["Retry-After"]) > 0 and b"verified" in early.body
        release.set()
        downloads._RANGE_PATIENCE_S = 20.0  # the fixture puts it back
        part = ask(endpoint, URL, Range="bytes=5-9")
        assert (part.status, part.body) == (206, LARGE[5:10])
        assert ask(endpoint, URL).body == LARGE


def test_a_bucket_is_read_by_several_requests_at_once(monkeypatch):
    store = Store(f"memory://{secrets.token_hex(4)}")
    put(store, REPO, FIRST, {"large.bin": LARGE})
    stream, under_way, most = store.stream, set(), []

    async def watched(entry, start=0, end=None) -> AsyncIterator[bytes]:
        under_way.add(start)
        most.append(len(under_way))
        async for chunk in stream(entry, start, end):
            yield chunk
        under_way.discard(start)

    monkeypatch.setattr(store, "stream", watched)
    with gateway(store) as endpoint:
        assert ask(endpoint, URL, Range="bytes=1-3").body == LARGE[1:4]
    assert max(most) >= 3 and max(most) <= verification._PARTS_AHEAD


@pytest.fixture
def folder(tmp_path) -> tuple[Store, Path]:
    """A folder store and its large blob, which somebody may write."""
    store = Store(str(tmp_path / "store"))
    put(store, REPO, FIRST, {"large.bin": LARGE})
    path = store.root / blob_key(sha256(LARGE))
    path.chmod(0o644)
    return store, path


def test_a_blob_whose_time_was_set_back_is_hashed_again(folder):
    store, path = folder
    with gateway(store) as endpoint:
        assert ask(endpoint, URL).body == LARGE
        before = path.stat()
        with path.open("r+b") as file:
            file.write(b"!")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)
        assert ask(endpoint, URL).status == ask(endpoint, URL, Range="bytes=0-9").status == 409


def test_a_blob_that_changes_while_it_is_hashed_gets_no_verdict(folder, monkeypatch):
    store, path = folder
    hash_file = verification._hash_file

    def hash_and_change(*given):
        problem = hash_file(*given)
        with path.open("r+b") as file:
            file.write(b"!")
        return problem

    monkeypatch.setattr(verification, "_hash_file", hash_and_change)
    with gateway(store) as endpoint:
        with pytest.raises(http.client.IncompleteRead):  # hashed as it was sent, and found wrong
            ask(endpoint, URL)
        assert ask(endpoint, URL, Range="bytes=0-9").status == 503
