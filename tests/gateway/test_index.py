"""The index: read once for many, again when it is old, and the store's troubles are not everybody's."""

import asyncio

import pytest

from eva_dist.errors import StoreError
from eva_dist.gateway import index as indexes
from eva_dist.gateway.index import Index
from tests.gateway.serving import put


def test_names_mean_what_they_say(store):
    first = put(store, "team/name", "v1", {"a": b"1"})
    second = put(store, "team/name", "v2", {"a": b"2"})
    put(store, "other/name", "v1", {"a": b"3"})

    async def look() -> None:
        index = Index(store)
        listed = [(entry.revision.repo_id, entry.revision.revision) for entry in await index.entries()]
        assert listed == [("other/name", "v1"), ("team/name", "v1"), ("team/name", "v2")]
        for revision, snapshot in {
            "v1": first,
            "main": second,
            first.commit: first,
            first.fingerprint: first,
            second.commit: second,
        }.items():
            assert (await index.entry("team/name", revision)).snapshot == snapshot
        for repo_id, revision in (("team/name", "v3"), ("no/one", "main"), ("other/name", first.commit)):
            assert await index.entry(repo_id, revision) is None
        main = put(store, "team/name", "main", {"a": b"4"})
        put(store, "team/name", "v9", {"a": b"5"})  # moved later, but main is a name now
        assert (await Index(store).entry("team/name", "main")).snapshot == main

    asyncio.run(look())


def test_many_that_wait_are_one_look_and_manifests_are_read_once(store, monkeypatch):
    put(store, "team/name", "v1", {"a": b"1"})
    looks, reads = [], []
    revisions, snapshot = store.revisions, store.snapshot
    monkeypatch.setattr(store, "revisions", lambda *of: looks.append(of) or revisions(*of))
    monkeypatch.setattr(store, "snapshot", lambda of: reads.append(of) or snapshot(of))

    async def look() -> None:
        index = Index(store, max_age_s=60.0)
        await asyncio.gather(*(index.entries() for _ in range(50)))
        assert len(looks) == 1 and len(reads) == 1
        index._max_age_s = 0.0
        await index.entries()
        assert len(looks) == 2 and len(reads) == 1

    asyncio.run(look())


def test_a_manifest_that_was_replaced_is_read_again(store):
    first = put(store, "team/name", "v1", {"a": b"1"})

    async def look() -> None:
        index = Index(store, max_age_s=0.0)
        assert (await index.entry("team/name", "v1")).snapshot == first
        path = store.root / "objects" / "manifests" / f"{first.fingerprint}.json"
        path.write_bytes(first.content + b"\n")
        again = (await index.entry("team/name", "v1")).snapshot
        assert again.commit != first.commit and again.fingerprint == first.fingerprint
        assert (await index.entry("team/name", first.commit)).snapshot == first  # for an hour

    asyncio.run(look())


def test_what_was_left_is_forgotten_in_the_end(store, monkeypatch):
    first = put(store, "team/name", "v1", {"a": b"1"})

    async def look() -> None:
        index = Index(store, max_age_s=0.0)
        await index.entries()
        put(store, "team/name", "v1", {"a": b"2"})
        await index.entries()
        assert await index.entry("team/name", first.commit) is not None
        monkeypatch.setattr(indexes, "_KEEP_S", 0.0)
        assert await index.entry("team/name", first.commit) is None

    asyncio.run(look())


def test_who_leaves_does_not_end_the_look_of_the_others(store, monkeypatch):
    put(store, "team/name", "v1", {"a": b"1"})
    revisions = store.revisions

    async def look() -> None:
        loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def slow(*of):
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)
            return revisions(*of)

        monkeypatch.setattr(store, "revisions", slow)
        index = Index(store)
        leaving, staying = (asyncio.create_task(index.entries()) for _ in range(2))
        await begun.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        go_on.set()
        assert len(await staying) == 1

    asyncio.run(look())


def test_an_old_view_answers_for_a_while_when_the_store_is_away(store, monkeypatch, caplog):
    put(store, "team/name", "v1", {"a": b"1"})

    def away(*of):
        raise StoreError("store.url=s3://x cannot be listed")

    async def look() -> None:
        index = Index(store, max_age_s=0.0)
        await index.entries()
        monkeypatch.setattr(store, "revisions", away)
        assert len(await index.entries()) == 1
        monkeypatch.setattr(indexes, "_OUTAGE_S", -1.0)
        with pytest.raises(StoreError):
            await index.entries()
        with pytest.raises(StoreError):
            await Index(store).entries()

    asyncio.run(look())
    assert "what it held before is served" in caplog.text


def test_a_store_that_is_slow_is_not_waited_for_where_something_is_known(store, monkeypatch):
    put(store, "team/name", "v1", {"a": b"1"})
    revisions = store.revisions

    async def look() -> None:
        index, loop, go_on = Index(store, max_age_s=0.0), asyncio.get_running_loop(), asyncio.Event()
        await index.entries()

        def slow(*of):
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)
            return revisions(*of)

        monkeypatch.setattr(store, "revisions", slow)
        monkeypatch.setattr(indexes, "_PATIENCE_S", 0.01)
        put(store, "team/name", "v2", {"a": b"2"})
        assert [entry.revision.revision for entry in await index.entries()] == ["v1"]
        go_on.set()
        monkeypatch.setattr(indexes, "_PATIENCE_S", 20.0)
        assert [entry.revision.revision for entry in await index.entries()] == ["v1", "v2"]

    asyncio.run(look())
