"""What every store does where things go wrong, wherever it lies: refusals, races, URLs."""

import asyncio
import hashlib
import threading
import time

import obstore
import pytest

from eva_dist.errors import ArtifactNotFoundError, StoreError
from eva_dist.store.objects import Objects
from eva_dist.store.store import Store
from eva_dist.store.store_reader import blob_key, manifest_key
from tests.store.artifacts import FILES, ONE, TWO, builder, refuse_to_build

# --- what goes wrong ---


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom("x"), KeyboardInterrupt(), SystemExit(1)])
def test_whatever_build_raises_passes_through_and_leaves_nothing(store, error):
    def build(folder):
        builder()(folder)
        raise error

    with pytest.raises(type(error)):
        store.publish(ONE, "team/name", "v1", build)
    assert store.find(ONE) is None and store.revisions() == [] and list(store.objects_below("objects")) == []


@pytest.mark.parametrize(
    ("fingerprint", "repo_id", "revision", "field"),
    [
        ("../../etc/x", "team/name", "v1", "fingerprint"),
        ("ABCDEF0123", "team/name", "v1", "fingerprint"),
        ("", "team/name", "v1", "fingerprint"),
        (ONE + "\n", "team/name", "v1", "fingerprint"),
        (ONE, "../name", "v1", "repo_id"),
        (ONE, "team/..", "v1", "repo_id"),
        (ONE, "/team/name", "v1", "repo_id"),
        (ONE, "name", "v1", "repo_id"),
        (ONE, "a/b/c", "v1", "repo_id"),
        (ONE, "snapshots/name", "v1", "repo_id"),
        (ONE, "objects/name", "v1", "repo_id"),
        (ONE, ".incoming/name", "v1", "repo_id"),
        (ONE, "team/na\0me", "v1", "repo_id"),
        (ONE, "team/name", "..", "revision"),
        (ONE, "team/name", "a/b", "revision"),
        (ONE, "team/name", "", "revision"),
        (ONE, "team/name", "v" * 241, "at most 240 bytes"),
    ],
)
def test_names_that_leave_the_store_are_refused_before_the_work(store, fingerprint, repo_id, revision, field):
    wrong = {"fingerprint": fingerprint} if field == "fingerprint" else {"repo_id": repo_id, "revision": revision}
    with pytest.raises(StoreError, match=field):
        store.publish(fingerprint, repo_id, revision, refuse_to_build)
    with pytest.raises(StoreError, match=field):
        store.point(fingerprint, repo_id, revision)
    if "repo_id" in wrong:
        with pytest.raises(StoreError, match=field):
            store.resolve(repo_id, revision or "..")
        with pytest.raises(StoreError, match=field):
            store.remove(repo_id, revision)
    assert list(store.objects_below("objects")) == []


def test_check_writable_leaves_nothing(store):
    store.check_writable()
    assert list(store.objects_below("objects")) == []


def test_touch_makes_young_and_changes_nothing(store):
    store.publish(ONE, "team/name", "v1", builder())
    key = manifest_key(ONE)
    before, content = store._objects.get_described(key)
    time.sleep(1.01 if store.url.startswith("s3") else 0.01)  # the finest time that S3 tells
    store._objects.touch(key)
    after, same = store._objects.get_described(key)
    assert same == content and after.modified > before.modified
    store._objects.touch(manifest_key(TWO))
    assert store._objects.head(manifest_key(TWO)) is None


def test_a_role_that_may_not_delete_is_enough(store, monkeypatch):
    def refuse(key):
        raise StoreError("AccessDenied")

    monkeypatch.setattr(store._objects, "delete", refuse)
    store.check_writable()


def test_a_name_that_is_set_back_and_forth_is_read_anew(store, store_url):
    """S3's version of an object is its content's hash: the same again is not the same moment."""
    store.publish(ONE, "team/name", "v1", builder("one"))
    store.publish(TWO, "team/name", "v1", builder("two"))
    reader = Store(store_url)
    assert reader.revisions()[0].fingerprint == TWO
    for wanted in (ONE, TWO, ONE):
        store.point(wanted, "team/name", "v1")
        assert reader.revisions()[0].fingerprint == reader.fingerprint_of("team/name", "v1") == wanted


def test_a_file_that_is_gone_is_a_clear_error_to_streams_too(store):
    store.publish(ONE, "team/name", "v1", builder())
    entry = store.snapshot(ONE).entry(FILES[0])
    store._objects.delete(blob_key(entry.sha256))

    async def streamed() -> list[bytes]:
        return [chunk async for chunk in store.stream(entry)]

    with pytest.raises(ArtifactNotFoundError, match="is gone; publish it again"):
        asyncio.run(streamed())


def test_a_large_file_is_put_in_no_more_parts_than_s3_takes(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(obstore, "put", lambda *given, chunk_size, **named: sizes.append(chunk_size))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(400 << 30)
    Objects("memory://parts").put_file("key", tmp_path / "sparse")
    assert (400 << 30) / sizes[0] < 10_000 and sizes[0] < 1 << 30


def test_a_store_that_overwrites_in_spite_of_create_only_is_refused(store, monkeypatch):
    put = store._objects.put
    monkeypatch.setattr(store._objects, "put", lambda key, content, create=False: put(key, content))
    with pytest.raises(StoreError, match=r"does not refuse to write what is there .*If-None-Match"):
        store.check_writable()


# --- races ---


def test_two_publishers_of_one_fingerprint_race_50_times(store_url):
    """Both have built before either commits: one wins, the other finds it."""
    for number in range(50):
        fingerprint = hashlib.sha256(str(number).encode()).hexdigest()
        meeting, results = threading.Barrier(2, timeout=30), {}

        def publish(text, fingerprint=fingerprint, meeting=meeting, results=results):
            def build(folder):
                manifest = builder(text, fingerprint)(folder)
                meeting.wait()
                return manifest

            results[text] = Store(store_url).publish(fingerprint, "team/name", f"r{fingerprint[:6]}-{text}", build)

        threads = [threading.Thread(target=publish, args=(text,)) for text in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store = Store(store_url)
        winner = store.read(store.snapshot(fingerprint).entry(FILES[0])).decode()
        assert results.keys() == {"a", "b"} and {p.manifest["text"] for p in results.values()} == {winner}
    assert len(store.revisions()) == 100


# --- URLs ---


@pytest.mark.parametrize("url", ["", "ftp://host/x", "https://host/x", "file://host/x", "s3:/x/y://"])
def test_other_urls_are_refused(url):
    with pytest.raises(StoreError, match=r"store\.url=.* must .*; "):
        Store(url)


def test_a_bucket_that_is_not_there_is_a_clear_error(bucket):
    with pytest.raises(StoreError, match=r"store\.url=s3://no-such-bucket/x cannot be \w+: .*; "):
        Store("s3://no-such-bucket/x").check_writable()


def test_a_bucket_without_rights_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr("eva_dist.store.objects.RETRIES", 0)
    with pytest.raises(StoreError, match=r"store\.url=s3://bucket/x cannot be read: .*; check the address"):
        Store("s3://bucket/x").find(ONE)
