"""Artifacts from a Hub, over http: right bytes, or none; asked once, then from the cache."""

import json
import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.store.hub_token import how_to_give, token_for
from eva_dist.store.open_artifact import fetch, open_artifact
from tests.fake_hub import FakeHub, Repo, running
from tests.small_artifact import FINGERPRINT, contents_of, fetched, write_artifact


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running() as found:
        yield found


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch, cache):
    monkeypatch.setattr("eva_dist.store.hub_repository._FIRST_WAIT_S", 0)


def kept(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and "known" not in p.parts)


@pytest.mark.parametrize("branch", ["main", "rho2.0-tau0.9", "my run/2", "refs/pr/1"])
def test_a_revision_comes_whole(hub, artifact, cache, branch):
    hub.put(artifact, branch=branch)
    word = branch.replace(" ", "%20")
    folder = fetch(f"{hub.url}/org/name" + ("" if branch == "main" else f"@{word}"))
    assert contents_of(folder) == contents_of(artifact)
    assert folder.is_relative_to(cache)


def test_hf_words_go_to_the_hub_of_the_environment(hub, artifact, monkeypatch):
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    hub.put(artifact)
    assert open_artifact("hf://org/name").read("weights.bin") == (artifact / "weights.bin").read_bytes()


def test_only_what_is_asked_for_travels(hub, artifact):
    hub.put(artifact)
    folder = fetch(f"{hub.url}/org/name", names=["README.md"])
    assert sorted(contents_of(folder)) == ["README.md", "manifest.json"]
    assert hub.bytes_of("weights.bin") == 0


def test_a_hit_asks_for_the_commit_alone_and_a_fingerprint_for_nothing(hub, artifact):
    commit = hub.put(artifact)
    hub.repos["org/name"].branches[FINGERPRINT] = commit  # as a gateway answers
    fetch(f"{hub.url}/org/name")
    fetch(f"{hub.url}/org/name@{FINGERPRINT}")
    hub.asked.clear()
    for revision in ("main", commit):  # of git, which our manifest cannot prove
        fetch(f"{hub.url}/org/name@{revision}")
        assert [one.path for one in hub.asked] == [f"/api/models/org/name/revision/{revision}"]
        hub.asked.clear()
    assert contents_of(fetch(f"{hub.url}/org/name@{FINGERPRINT}")) == contents_of(artifact)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["main", "v1", "deadbeef"])
@pytest.mark.parametrize("liar", ["manifest", "server"])
def test_nobody_pins_a_name_to_an_artifact(hub, artifact, tmp_path, name, liar):
    """A fingerprint or a commit that is called like a branch must not make it one that never moves."""
    poisoned = write_artifact(tmp_path / "poisoned", name if liar == "manifest" else FINGERPRINT, a_bin=b"poison")
    commit = hub.put(poisoned, branch=name)
    if liar == "server":
        repo = hub.repos["org/name"]
        repo.commits[name] = repo.commits[commit]
        repo.branches[name] = name
        with pytest.raises(StoreError, match=f"names the commit '{name}', must be 40 hex digits"):
            fetch(f"{hub.url}/org/name@{name}")
    else:
        fetch(f"{hub.url}/org/name@{name}")
    hub.put(artifact, branch=name)
    assert contents_of(fetch(f"{hub.url}/org/name@{name}")) == contents_of(artifact)


@pytest.mark.parametrize("digits", [40, 41, 64, 128])
def test_what_is_asked_for_by_its_hash_is_that_or_nothing(hub, artifact, digits):
    hub.repos.setdefault("org/name", Repo()).branches["c" * digits] = hub.put(artifact)
    with pytest.raises(IntegrityError, match=f"is the artifact 'abab.*, not {'c' * digits}"):
        open_artifact(f"{hub.url}/org/name@{'c' * digits}")


def test_a_branch_that_moved_is_followed(hub, artifact, tmp_path):
    hub.put(artifact)
    first = fetch(f"{hub.url}/org/name")
    hub.put(write_artifact(tmp_path / "new", "cd" * 32, a_bin=b"new"))
    second = open_artifact(f"{hub.url}/org/name")
    assert second.read("a.bin") == b"new" and second.snapshot.fingerprint == "cd" * 32
    assert contents_of(first) == contents_of(artifact)


def test_another_artifact_than_the_fingerprint_says(hub, artifact):
    hub_commit = hub.put(artifact)
    hub.repos["org/name"].branches["cd" * 32] = hub_commit
    with pytest.raises(IntegrityError, match="is the artifact 'abab.*not cdcd"):
        open_artifact(f"{hub.url}/org/name@{'cd' * 32}")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: b"x" + c, lambda c: b"\x01" + c[1:]])
def test_a_file_that_differs_is_refused_and_leaves_nothing(hub, artifact, cache, change, ranges):
    hub.ranges = ranges
    content = (artifact / "weights.bin").read_bytes()
    (artifact / "weights.bin").write_bytes(change(content))
    hub.put(artifact)
    with pytest.raises(IntegrityError, match="weights.bin"):
        fetch(f"{hub.url}/org/name", names=["weights.bin"])
    assert kept(cache) == ["manifest.json"]


def test_a_missing_file(hub, artifact):
    (artifact / "weights.bin").unlink()
    hub.put(artifact)
    with pytest.raises(IntegrityError, match="weights.bin is missing though the manifest lists it"):
        fetch(f"{hub.url}/org/name")


def test_a_poisoned_manifest_writes_nothing(hub, artifact, tmp_path, cache):
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"]["../../escaped"] = manifest["files"]["README.md"]
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    hub.put(artifact)
    with pytest.raises(IntegrityError, match="escaped.*must be a plain path"):
        fetch(f"{hub.url}/org/name")
    assert not cache.exists() and not list(tmp_path.rglob("escaped"))


def test_a_cache_that_rotted_is_filled_anew(hub, artifact):
    hub.put(artifact)
    folder = fetch(f"{hub.url}/org/name")
    (folder / "weights.bin").write_bytes(b"rotten")
    (folder / "README.md").unlink()
    assert contents_of(fetch(f"{hub.url}/org/name")) == contents_of(artifact)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, artifact, caplog):
    hub.put(artifact)
    hub.cut["weights.bin"] = 5000
    with caplog.at_level(logging.WARNING):
        assert open_artifact(f"{hub.url}/org/name").read("weights.bin") == (artifact / "weights.bin").read_bytes()
    assert hub.bytes_of("weights.bin") == 256 * 64 and "going on from byte 5000" in caplog.text


def test_a_server_that_stays_broken_is_given_up(hub, artifact, cache):
    hub.put(artifact)
    opened = open_artifact(f"{hub.url}/org/name")
    hub.fail = lambda method, path: 500 if path.endswith("weights.bin") else None
    with pytest.raises(StoreError, match="answered 500"):
        opened.fetch()
    assert "weights.bin" not in kept(cache)


def test_the_token_goes_to_the_host_that_was_asked_and_no_further(hub, artifact, monkeypatch):
    write_artifact(artifact, a_parquet=b"linked" * 100)
    hub.put(artifact)
    hub.cdn = True
    hub.repos["org/name"].private, hub.tokens["secret"] = True, {"org"}
    with pytest.raises(ArtifactNotFoundError, match="has no org/name, or you may not see it.*set EVA_DIST_TOKEN"):
        fetch(f"{hub.url}/org/name")
    monkeypatch.setenv("EVA_DIST_TOKEN", "secret")
    hub.asked.clear()
    assert (fetch(f"{hub.url}/org/name") / "a.parquet").read_bytes() == b"linked" * 100
    assert {(one.host.partition(":")[0], one.token) for one in hub.asked} == {
        ("127.0.0.1", "secret"),
        ("localhost", None),
    }


def test_the_token_of_the_hub_goes_to_no_host_that_a_word_names(hub, artifact, monkeypatch):
    hub.put(artifact)
    monkeypatch.setenv("HF_TOKEN", "of the Hub")
    fetch(f"{hub.url}/org/name")
    with pytest.raises(ArtifactNotFoundError):
        open_artifact(f"{hub.url}/org/nam")  # it asks for names that are near
    assert len(hub.asked) > 5 and {one.token for one in hub.asked} == {None}
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)  # what HF_ENDPOINT sets
    open_artifact(f"{hub.url}/org/name")
    assert {one.token for one in hub.asked} == {"of the Hub"}


def test_no_token_goes_in_clear_over_the_network(hub, artifact, monkeypatch):
    hub.put(artifact)
    monkeypatch.setenv("EVA_DIST_TOKEN", "secret")
    monkeypatch.setattr("eva_dist.store.hub_token.ipaddress.ip_address", raise_value_error)  # as if it were elsewhere
    fetch(f"{hub.url}/org/name")
    assert {one.token for one in hub.asked} == {None}
    hub.fail = lambda method, path: 401
    with pytest.raises(StoreError, match="refuses .401.* use https:// and set EVA_DIST_TOKEN"):
        fetch(f"{hub.url}/org/name")


def raise_value_error(*_):
    raise ValueError


@pytest.mark.parametrize(
    ("endpoint", "token", "remedy"),
    [
        ("https://huggingface.co", None, "set HF_TOKEN"),
        ("https://huggingface.co:443/prefix", None, "set HF_TOKEN"),
        ("http://huggingface.co", False, "use https:// and set EVA_DIST_TOKEN"),
        ("https://huggingface.co.evil.org", "ours", "set EVA_DIST_TOKEN (HF_TOKEN goes to the Hub"),
        ("https://gateway/eva", "ours", "set EVA_DIST_TOKEN"),
        ("http://gateway:8000", False, "use https://"),
        ("http://10.0.0.1:8000", False, "use https://"),
        ("http://127.0.0.1.evil.org", False, "use https://"),
        ("http://127.0.0.2:8000", "ours", "set EVA_DIST_TOKEN"),
        ("http://localhost:8000", "ours", "set EVA_DIST_TOKEN"),
        ("http://[::1]:8000", "ours", "set EVA_DIST_TOKEN"),
    ],
)
def test_which_token_goes_where(endpoint, token, remedy, monkeypatch):
    monkeypatch.setenv("EVA_DIST_TOKEN", "ours")
    assert token_for(endpoint) == token and how_to_give(endpoint).startswith(remedy)
    monkeypatch.delenv("EVA_DIST_TOKEN")
    assert token_for(endpoint) == (None if token is None else False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    assert token_for(endpoint) is None


def test_offline_answers_from_the_cache_and_says_so(hub, artifact, monkeypatch, caplog):
    commit = hub.put(artifact)
    fetch(f"{hub.url}/org/name")
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING):
        assert contents_of(fetch(f"{hub.url}/org/name")) == contents_of(artifact)
    assert "offline (HF_HUB_OFFLINE), so answered from the cache" in caplog.text
    caplog.clear()
    fetch(f"{hub.url}/org/name@{commit}")
    assert not caplog.records and not hub.asked
    with pytest.raises(StoreError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
        fetch(f"{hub.url}/org/name@other")


def test_what_is_not_there_is_named_with_what_is(hub, artifact, tmp_path):
    hub.put(artifact, branch="rho2.0-tau0.99")
    hub.put(artifact)
    with pytest.raises(ArtifactNotFoundError, match=r"has no org/nam, .*It has org/name"):
        open_artifact(f"{hub.url}/org/nam")
    with pytest.raises(ArtifactNotFoundError, match=r"has no revision rho2.0; it has rho2.0-tau0.99, main"):
        open_artifact(f"{hub.url}/org/name@rho2.0")
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text("{}")
    hub.put(other, "org/adapter")
    with pytest.raises(ArtifactNotFoundError, match=r"org/adapter is no artifact of eva_dist, for it has no manifest"):
        open_artifact(f"{hub.url}/org/adapter")


@pytest.mark.parametrize(("status", "why"), [(403, "refuses .403"), (500, "answered 500")])
def test_a_server_that_refuses(hub, status, why):
    hub.fail = lambda method, path: status
    with pytest.raises(StoreError, match=why):
        open_artifact(f"{hub.url}/org/name")


def test_nobody_there():
    with pytest.raises(StoreError, match="cannot be reached .*check the URL and the network"):
        open_artifact("http://127.0.0.1:9/org/name")


def test_progress_is_told_each_byte_once(hub, artifact):
    hub.put(artifact)
    told: list[int] = []
    fetch(f"{hub.url}/org/name", progress=told.append)
    assert sum(told) == sum(len(c) for n, c in contents_of(artifact).items() if n != "manifest.json")


def test_parts_are_parts(hub, artifact):
    hub.put(artifact)
    opened = open_artifact(f"{hub.url}/org/name")
    hub.asked.clear()
    assert opened.read_range("weights.bin", 250, 300) == (artifact / "weights.bin").read_bytes()[250:300]
    assert hub.bytes_of("weights.bin") == 50
    opened.fetch(["weights.bin"])
    hub.asked.clear()
    assert opened.read_range("weights.bin", 5, 9) == bytes([5, 6, 7, 8]) and not hub.asked
    with pytest.raises(IntegrityError, match="has 16384 bytes, none from 5 to 16385"):
        opened.read_range("weights.bin", 5, 16385)


def test_processes_fill_one_cache_together(hub, artifact, cache):
    hub.put(artifact)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(fetched, [f"{hub.url}/org/name"] * 6)
    assert found == [contents_of(artifact)] * 6
    assert kept(cache) == ["README.md", "manifest.json", "of.it", "weights.bin"]


def test_a_cache_that_cannot_be_written(hub, artifact, monkeypatch, tmp_path):
    hub.put(artifact)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVA_DIST_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="EVA_DIST_CACHE: .* cannot be written: Not a directory; .*set EVA_DIST_CACHE"):
        fetch(f"{hub.url}/org/name")


@pytest.mark.parametrize(
    "body", ["<html>log in</html>", "[]", "{}", '{"sha": 5}', '{"id": "org/name"}', "[" * 100_000, None], ids=str
)
def test_a_server_that_is_no_hub_is_said_to_be_none(body, monkeypatch):
    """Any website, a page to log in, or one whose answer never ends: little of that is read."""
    sent = 0

    class Odd(BaseHTTPRequestHandler):
        def do_GET(self):
            nonlocal sent
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                for chunk in [body.encode()] if body else iter(lambda: b" " * 65536, None):
                    sent += self.wfile.write(chunk)

        def log_message(self, *_):
            pass

    monkeypatch.setattr("eva_dist.store.hub_repository._LARGEST_ANSWER", 1 << 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StoreError, match=r"does not answer as a Hub does: .*check the URL"):
            fetch(f"http://127.0.0.1:{server.server_port}/org/name@v1")
        server.shutdown()
    assert sent < 50 << 20
