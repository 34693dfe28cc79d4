"""The index: read once for many, again when it is old, and the store's troubles are not everybody's."""

import asyncio
import threading

import pytest

from eva_dist.errors import StoreError
from eva_dist.gateway import index as indexes
from eva_dist.gateway.index import Index
from tests.gateway.serving import ask, gateway, put


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
    revisions, snapshot = store.revisions_and_broken, store.snapshot
    monkeypatch.setattr(store, "revisions_and_broken", lambda *of: looks.append(of) or revisions(*of))
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
    revisions = store.revisions_and_broken

    async def look() -> None:
        loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def slow(*of):
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)
            return revisions(*of)

        monkeypatch.setattr(store, "revisions_and_broken", slow)
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
        monkeypatch.setattr(store, "revisions_and_broken", away)
        assert len(await index.entries()) == 1
        monkeypatch.setattr(indexes, "_OUTAGE_S", -1.0)
        with pytest.raises(StoreError):
            await index.entries()
        with pytest.raises(StoreError):
            await Index(store).entries()

    asyncio.run(look())
    assert "what it held before is served" in caplog.text


class Gate:
    """Has a store's list wait, in its thread, until it is opened."""

    def __init__(self, store, monkeypatch) -> None:
        self.begun, self.open, self.looks = threading.Event(), threading.Event(), 0
        self._list = store.revisions_and_broken
        monkeypatch.setattr(store, "revisions_and_broken", self)

    def __call__(self, *of):
        self.looks += 1
        self.begun.set()
        assert self.open.wait(20)
        return self._list(*of)


def test_a_store_that_is_slow_is_not_waited_for_where_something_is_known(store, monkeypatch):
    put(store, "team/name", "v1", {"a": b"1"})

    async def look() -> None:
        index = Index(store, max_age_s=0.0)
        await index.entries()
        gate = Gate(store, monkeypatch)
        monkeypatch.setattr(indexes, "_PATIENCE_S", 0.01)
        put(store, "team/name", "v2", {"a": b"2"})
        assert [entry.revision.revision for entry in await index.entries()] == ["v1"]
        # The moment of patience is over for this look: nobody who comes now waits at all.
        monkeypatch.setattr(indexes.asyncio, "wait", only_without_waiting)
        for _ in range(5):
            assert [entry.revision.revision for entry in await index.entries()] == ["v1"]
        monkeypatch.undo()
        assert gate.looks == 1
        gate.open.set()
        await index._refreshing
        assert [entry.revision.revision for entry in (await index.view()).entries] == ["v1", "v2"]

    async def only_without_waiting(tasks, timeout):
        assert timeout == 0.0
        return set(), set(tasks)

    asyncio.run(look())


def test_what_is_old_is_waited_for_longer(store, monkeypatch):
    put(store, "team/name", "v1", {"a": b"1"})

    async def look() -> None:
        index = Index(store, max_age_s=0.0)
        await index.entries()
        gate = Gate(store, monkeypatch)
        monkeypatch.setattr(indexes, "_PATIENCE_S", 0.01)
        monkeypatch.setattr(indexes, "_OLD_S", 0.0)
        monkeypatch.setattr(indexes, "_OLD_PATIENCE_S", 20.0)
        put(store, "team/name", "v2", {"a": b"2"})
        looking = asyncio.create_task(index.entries())
        await asyncio.to_thread(gate.begun.wait, 20)
        gate.open.set()
        assert [entry.revision.revision for entry in await looking] == ["v1", "v2"]

    asyncio.run(look())


def test_the_next_look_is_counted_from_the_end_of_the_last(store, monkeypatch):
    """A look that takes longer than a view may be old would else follow the last at once, for ever."""
    put(store, "team/name", "v1", {"a": b"1"})
    clock = [1000.0]
    listed, looks = store.revisions_and_broken, []

    def takes_a_minute(*of):
        looks.append(clock[0])
        clock[0] += 60.0
        return listed(*of)

    async def look() -> None:
        monkeypatch.setattr(store, "revisions_and_broken", takes_a_minute)
        index = Index(store, max_age_s=2.0)
        await index.entries()
        clock[0] += 1.0
        await index.entries()
        assert looks == [1000.0]
        clock[0] += 2.0
        await index.entries()
        assert looks == [1000.0, 1063.0]

    class Time:
        monotonic = staticmethod(lambda: clock[0])

    monkeypatch.setattr(indexes, "time", Time)
    asyncio.run(look())


def test_a_request_is_answered_from_one_view(store, monkeypatch):
    put(store, "team/name", "v1", {"a": b"1"})
    views, view = [], Index.view

    async def counted(index):
        views.append(1)
        return await view(index)

    monkeypatch.setattr(Index, "view", counted)
    with gateway(store) as endpoint:
        for path in ("/api/models/team/name", "/team/name/resolve/none/a", "/api/models/team/none", "/api/models"):
            views.clear()
            ask(endpoint, path)
            assert len(views) == 1, path


def pointer(store, repo_id: str, revision: str):
    return store.root / "objects" / "revisions" / repo_id / f"{revision}.json"


def test_a_pointer_that_is_damaged_is_that_ones_trouble(store, tmp_path, caplog):
    """Written by hand, or by whoever may write into the folder."""
    put(store, "team/name", "good", {"a": b"1"})
    good = pointer(store, "team/name", "good")
    (tmp_path / "elsewhere").write_bytes(good.read_bytes())
    for name, content in {
        "deep": b"[" * 60_000,
        "deeper": b'{"a":' * 10_000,
        "huge": b" " * (1 << 20) + good.read_bytes(),
        "none": b"",
        "other": b'{"fingerprint": 3}',
    }.items():
        good.with_name(f"{name}.json").write_bytes(content)
    good.with_name("link.json").symlink_to(tmp_path / "elsewhere")
    with gateway(store) as endpoint:
        assert ask(endpoint, "/team/name/resolve/good/a").body == b"1"
        assert [one["id"] for one in ask(endpoint, "/api/models").json()] == ["team/name"]
        for name in ("deep", "deeper", "huge", "none", "other"):
            assert ask(endpoint, f"/team/name/resolve/{name}/a").status == 409, name
        assert ask(endpoint, "/team/name/resolve/link/a").status == 409
    assert caplog.text.count("team/name@deep is left out") == 1


def test_a_manifest_that_fails_in_any_way_is_that_ones_trouble(store, monkeypatch):
    put(store, "team/name", "good", {"a": b"1"})
    damaged, away = put(store, "team/name", "bad", {"a": b"2"}), put(store, "other/name", "away", {"a": b"3"})
    snapshot, reads = store.snapshot, []

    def read(fingerprint: str):
        reads.append(fingerprint)
        if fingerprint == damaged.fingerprint:
            raise RecursionError("deep")
        if fingerprint == away.fingerprint:
            raise StoreError("no route")
        return snapshot(fingerprint)

    monkeypatch.setattr(store, "snapshot", read)
    with gateway(store) as endpoint:
        assert ask(endpoint, "/team/name/resolve/good/a").body == b"1"
        assert ask(endpoint, "/team/name/resolve/bad/a").status == 409
        got = ask(endpoint, "/other/name/resolve/away/a")
        assert got.status == 503 and got.headers["Retry-After"]  # that may pass
        assert reads.count(damaged.fingerprint) == 1  # of which nothing new is known
        monkeypatch.setattr(store, "snapshot", snapshot)
        assert ask(endpoint, "/other/name/resolve/away/a").body == b"3"


def test_a_look_that_fails_in_any_way_leaves_what_was_known(store, monkeypatch, caplog):
    put(store, "team/name", "v1", {"a": b"1"})

    def failing(*of):
        raise RecursionError("maximum recursion depth exceeded")

    async def look() -> None:
        index = Index(store, max_age_s=0.0)
        await index.entries()
        monkeypatch.setattr(store, "revisions_and_broken", failing)
        assert len(await index.entries()) == 1
        with pytest.raises(RecursionError):
            await Index(store).entries()

    asyncio.run(look())
    assert "what it held before is served: maximum recursion" in caplog.text
