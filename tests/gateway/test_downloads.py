"""What leaves the gateway: ranges and conditions, bytes that were verified, commits that stay."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from eva_dist.errors import StoreError
from eva_dist.gateway import verification
from eva_dist.store.store import Store
from tests.gateway.conftest import FIRST, REPO, SECOND
from tests.gateway.serving import FILES, ask, gateway, put, sha256

BIG = FILES["big.bin"]
ETAG = f'"{sha256(BIG)}"'
URL = f"/{REPO}/resolve/{FIRST}/big.bin"


def test_a_file_that_is_another_now_is_not_sent(served):
    for method in ("GET", "HEAD"):
        assert ask(served.endpoint, URL, method, If_Match='"other"').status == 412
        assert ask(served.endpoint, URL, method, If_Match=ETAG).status == 200
        assert ask(served.endpoint, URL, method, If_Match=ETAG, If_None_Match=ETAG).status == 304
    assert ask(served.endpoint, URL, If_Match=ETAG, Range="bytes=1-2").body == BIG[1:3]


@pytest.mark.parametrize(
    ("path", "revision"),
    [
        (f"/{REPO}/", SECOND),
        (f"/{REPO}/tree/{FIRST}/plots/deep", FIRST),
        (f"/{REPO}/blob/{FIRST}/README.md", FIRST),
        (f"/{REPO}/blob/main/README.md", SECOND),
    ],
)
def test_a_hubs_url_leads_to_the_page(served, path, revision):
    for method in ("GET", "HEAD"):
        got = ask(served.endpoint, path, method)
        assert (got.status, got.headers["Location"]) == (302, f"/artifact/{REPO}/{revision}")
    assert ask(served.endpoint, got.headers["Location"]).status == 200
    for gone in (f"/{REPO}/blob/none/README.md", "/team/none/", f"/{REPO}/none/{FIRST}"):
        assert ask(served.endpoint, gone).status == 404


def test_parts_of_a_file(served):
    whole = ask(served.endpoint, URL)
    assert (whole.status, whole.body, whole.headers["ETag"]) == (200, BIG, ETAG)
    part = ask(served.endpoint, URL, Range="bytes=2000000-2500000")
    assert (part.status, part.body) == (206, BIG[2_000_000:2_500_001])
    assert part.headers["Content-Range"] == f"bytes 2000000-2500000/{len(BIG)}"
    assert part.headers["X-Linked-Size"] == str(len(BIG))
    resumed = ask(served.endpoint, URL, Range="bytes=2800000-", If_Range=ETAG)
    assert (resumed.status, resumed.body) == (206, BIG[2_800_000:])
    other = ask(served.endpoint, URL, Range="bytes=2800000-", If_Range='"other"')
    assert (other.status, other.body) == (200, BIG)
    beyond = ask(served.endpoint, URL, Range=f"bytes={len(BIG)}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(BIG)}")
    known = ask(served.endpoint, URL, If_None_Match=ETAG)
    assert (known.status, known.body) == (304, b"")
    manifest = ask(served.endpoint, f"/{REPO}/resolve/{FIRST}/manifest.json", Range="bytes=-5")
    assert (manifest.status, manifest.body) == (206, served.first.content[-5:])


def test_head_says_all_and_sends_nothing(served):
    head = ask(served.endpoint, URL, "HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(BIG)))
    assert (head.headers["X-Linked-Etag"], head.headers["X-Linked-Size"]) == (ETAG, str(len(BIG)))
    assert head.headers["X-Repo-Commit"] == served.first.commit and head.headers["Accept-Ranges"] == "bytes"
    assert "immutable" in ask(served.endpoint, URL.replace(FIRST, served.first.commit)).headers["Cache-Control"]


def test_no_browser_runs_what_an_artifact_holds(served):
    svg = ask(served.endpoint, f"/{REPO}/resolve/{FIRST}/plots/deep/own.svg").headers
    assert svg["Content-Disposition"].startswith('attachment; filename="own.svg"')
    assert svg["X-Content-Type-Options"] == "nosniff" and "sandbox" in svg["Content-Security-Policy"]
    odd = ask(served.endpoint, f"/{REPO}/resolve/{FIRST}/with%20blank%2C%20%C3%BC%20%26%20100%25.txt").headers
    assert "filename*=UTF-8''with%20blank%2C%20%C3%BC%20%26%20100%25.txt" in odd["Content-Disposition"]


def blob(store: Store, content: bytes) -> Path:
    """Return where a folder store has these bytes."""
    name = sha256(content)
    return store.root / "objects" / "blobs" / name[:2] / name


@pytest.fixture
def flipped(store) -> Store:
    """A store in which one bit of `big.bin` is not as it was, of the same size."""
    put(store, REPO, FIRST, FILES)
    path = blob(store, BIG)
    content = bytearray(path.read_bytes())
    content[1_500_000] ^= 1
    path.write_bytes(content)
    return store


def test_a_flipped_bit_is_never_sent(flipped, tmp_path, caplog):
    with gateway(flipped) as endpoint:
        for headers in ({}, {"Range": "bytes=0-9"}):
            got = ask(endpoint, URL, **headers)
            assert got.status == 409 and b"damaged" in got.body and BIG[:10] not in got.body
        with pytest.raises(HfHubHTTPError, match="its bytes are not those that manifest.json promises"):
            hf_hub_download(REPO, "big.bin", revision=FIRST, endpoint=endpoint, cache_dir=tmp_path, token=False)
        assert ask(endpoint, f"/{REPO}/resolve/{FIRST}/README.md").body == FILES["README.md"]
        assert "is not served: the blob has sha256" in caplog.text
        blob(flipped, BIG).write_bytes(BIG)  # mended: seen at once, for its time of change is another
        assert ask(endpoint, URL).body == BIG


def test_a_flipped_bit_in_a_bucket_is_never_sent(bucket):
    import boto3

    store = Store(f"{bucket}/flipped")
    put(store, REPO, FIRST, FILES)
    for content in (BIG, FILES["README.md"]):  # one that is streamed, one that is read in one
        key = f"flipped/objects/blobs/{sha256(content)[:2]}/{sha256(content)}"
        boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=content[:-1] + b"!")
    with gateway(store) as endpoint:
        assert ask(endpoint, URL).status == ask(endpoint, f"/{REPO}/resolve/{FIRST}/README.md").status == 409


def test_a_blob_that_is_gone_and_one_that_leads_out_of_the_store(store, tmp_path):
    put(store, REPO, FIRST, FILES)
    secret = tmp_path / "secret"
    secret.write_bytes(BIG)  # even with the right bytes
    blob(store, BIG).unlink()
    with gateway(store) as endpoint:
        assert ask(endpoint, URL).status == 409
        assert ask(endpoint, URL, "HEAD").status == 200  # metadata are the manifest's
        blob(store, BIG).symlink_to(secret)
        assert ask(endpoint, URL).status == 409


def test_many_wait_for_one_check(store, monkeypatch):
    put(store, REPO, FIRST, FILES)
    checks, begun, release = [], threading.Event(), threading.Event()
    hash_file = verification._hash_file

    def slow(descriptor: int, entry):
        checks.append(entry.path)
        begun.set()
        assert release.wait(20)
        return hash_file(descriptor, entry)

    monkeypatch.setattr(verification, "_hash_file", slow)
    with gateway(store) as endpoint, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, endpoint, URL) for _ in range(8)]
        assert begun.wait(20)
        assert ask(endpoint, URL, "HEAD").status == 200  # answered meanwhile, without a look at the blob
        assert not any(one.done() for one in waiting)
        release.set()
        assert all(one.result().body == BIG for one in waiting)
        assert ask(endpoint, URL).body == BIG
    assert checks == ["big.bin"]


def test_a_commit_stays_when_its_revision_moves_on(store):
    first = put(store, REPO, FIRST, FILES)
    with gateway(store) as endpoint:
        assert ask(endpoint, URL, "HEAD").headers["X-Repo-Commit"] == first.commit
        second = put(store, REPO, FIRST, {"README.md": b"new\n"})
        assert ask(endpoint, URL, "HEAD").code == "EntryNotFound"
        assert ask(endpoint, f"/api/models/{REPO}").json()["sha"] == second.commit
        assert ask(endpoint, f"/{REPO}/resolve/{first.commit}/big.bin").body == BIG
        assert ask(endpoint, f"/api/models/{REPO}/tree/{first.commit}?recursive=true").status == 200
        store.remove(REPO, FIRST)
        assert ask(endpoint, f"/api/models/{REPO}").code == "RepoNotFound"
        assert ask(endpoint, f"/{REPO}/resolve/{first.commit}/big.bin").body == BIG


def test_a_broken_manifest_is_named_and_the_others_are_served(store, caplog):
    put(store, REPO, "good", FILES)
    bad = put(store, REPO, "bad", {"a": b"1"})
    (store.root / "objects" / "manifests" / f"{bad.fingerprint}.json").write_text('{"files": {"../../etc": 1}}')
    with gateway(store) as endpoint:
        assert ask(endpoint, f"/api/models/{REPO}/revision/bad").status == 409
        assert ask(endpoint, f"/{REPO}/resolve/bad/a").status == 409
        assert ask(endpoint, f"/{REPO}/resolve/main/big.bin").body == BIG
    assert f"{REPO}@bad is left out" in caplog.text


def test_a_store_that_cannot_be_reached_says_so_and_comes_back(store, monkeypatch):
    put(store, REPO, FIRST, FILES)
    reach = store.revisions_and_broken

    def unreachable(repo_id=None):
        raise StoreError("store.url=s3://secret-bucket cannot be listed: no route")

    monkeypatch.setattr(store, "revisions_and_broken", unreachable)
    with gateway(store) as endpoint:
        got = ask(endpoint, URL)
        assert got.status == 503 and got.headers["Retry-After"] and b"secret-bucket" not in got.body
        assert ask(endpoint, "/healthz").status == 200
        monkeypatch.setattr(store, "revisions_and_broken", reach)
        assert ask(endpoint, URL).body == BIG
        monkeypatch.setattr(store, "revisions_and_broken", unreachable)
        assert ask(endpoint, URL).body == BIG  # what was known goes on
