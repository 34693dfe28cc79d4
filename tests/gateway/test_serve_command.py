"""The real `eva-dist serve` process: start, a server that dies in mid-download, unchanged commands, end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from tqdm.auto import tqdm
from typer.testing import CliRunner

from eva_dist.cli.main import app
from eva_dist.cli.serve import serve
from eva_dist.errors import ConfigError, StoreError
from eva_dist.store.store import Store
from tests.gateway.conftest import FIRST, REPO
from tests.gateway.serving import ask, put, sha256
from tests.own_run import own_run

ROOT = Path(__file__).parents[2]
LARGE = os.urandom(1 << 20) * 40
CHUNK = 10 << 20
"""What huggingface_hub writes at a time."""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", **more}


class Process:
    """`eva-dist serve`, up and running."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "eva_dist.cli.main", "serve", *options]
        self.running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT)
        self.told = [self.running.stderr.readline() for _ in range(2)]
        assert "serving" in self.told[0], self.told + [self.running.stderr.read()]
        self.endpoint = self.told[0].partition(" at ")[2].split()[0]

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.running.send_signal(number)
        _, log = self.running.communicate(timeout=30)
        return self.running.returncode, log


@contextmanager
def process(*options: str) -> Iterator[Process]:
    started = Process(*options)
    try:
        yield started
    finally:
        if started.running.poll() is None:
            started.end(signal.SIGKILL)


def test_it_says_where_it_is_and_ends_in_order(store):
    put(store, REPO, FIRST, {"a.txt": b"a"})
    for number in (signal.SIGTERM, signal.SIGINT):
        with process("--store", store.url, "--port", "0") as served:
            assert "no --token-file: loopback only" in served.told[0]
            assert f"serving {store.url}, 1 artifact, at http://" in served.told[0]
            assert f"HF_ENDPOINT={served.endpoint} hf download team/name" in served.told[1]
            assert ask(served.endpoint, f"/{REPO}/resolve/{FIRST}/a.txt").body == b"a"
            code, log = served.end(number)
            assert code == 0 and "method=GET path=/team/name/resolve/rho2.0-tau0.99/a.txt status=200" in log


def test_a_download_goes_on_when_the_server_dies_and_comes_back(store, tmp_path):
    put(store, REPO, FIRST, {"large.bin": LARGE})
    first = Process("--store", store.url, "--port", "0")
    servers = [first]
    port = first.endpoint.rpartition(":")[2]

    class Watching(tqdm):
        """Has the server die after the first chunk, and start again, before the client goes on."""

        def update(self, n: float = 1) -> bool | None:
            if len(servers) == 1 and n >= CHUNK:
                assert servers[0].end(signal.SIGKILL)[0] == -signal.SIGKILL
                servers.append(Process("--store", store.url, "--port", port))
            return super().update(n)

    try:
        path = hf_hub_download(
            REPO,
            "large.bin",
            revision=FIRST,
            endpoint=first.endpoint,
            cache_dir=tmp_path,
            tqdm_class=Watching,
            token=False,
        )
    finally:
        ended = [server.end(signal.SIGTERM) for server in servers if server.running.poll() is None]
    assert Path(path).read_bytes() == LARGE
    assert len(servers) == 2 and ended[-1][0] == 0
    served = [line for line in ended[-1][1].splitlines() if "method=GET" in line]
    assert len(served) == 1 and " status=206 " in served[0]
    facts = dict(pair.split("=", 1) for pair in served[0].split() if "=" in pair)
    assert 0 < int(facts["bytes"]) <= len(LARGE) - CHUNK  # what the client had did not come again


@pytest.fixture(scope="module")
def real_store(tmp_path_factory, tiny_model, words_file) -> tuple[Store, str]:
    """A store with an artifact of a real run, and its revision."""
    from tests.tiny_run import tiny_config

    folder = tmp_path_factory.mktemp("real") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eva_dist.artifact.write.write_plots", lambda *given: None)
        own_run(tiny_config(tiny_model, words_file, folder))
    store = Store(str(folder))
    [revision] = store.revisions()
    store.point(revision.fingerprint, REPO, FIRST)
    return store, revision.fingerprint


LOAD = """
import json, sys
from transformers import AutoModelForCausalLM
from peft import PeftModel
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), "team/name", revision=sys.argv[2])
ranks = {name: len(weight) for name, weight in model.state_dict().items() if "lora_A" in name}
print(json.dumps(ranks))
"""


def test_unchanged_commands_and_peft(real_store, tiny_model, tmp_path):
    store, fingerprint = real_store
    with process("--store", store.url, "--port", "0") as served:
        there = environment(HF_ENDPOINT=served.endpoint, HF_HUB_CACHE=str(tmp_path / "cache"))
        hf = [str(Path(sys.executable).with_name("hf")), "download", REPO, "--revision", FIRST]
        loading = subprocess.Popen(
            [sys.executable, "-c", LOAD, str(tiny_model), FIRST], env=there, stdout=subprocess.PIPE, text=True
        )
        done = subprocess.run(
            [*hf, "--local-dir", str(tmp_path / "here")], env=there, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        printed, _ = loading.communicate(timeout=120)
    for name, file in store.snapshot(fingerprint).files.items():
        assert sha256((tmp_path / "here" / name).read_bytes()) == file.sha256
    ranks = {name: layer["rank"] for name, layer in store.snapshot(fingerprint).manifest["layers"].items()}
    loaded = {
        name.removeprefix("base_model.model.").partition(".lora_A")[0]: n for name, n in json.loads(printed).items()
    }
    assert loaded == {name: rank for name, rank in ranks.items() if rank}


def test_a_store_that_cannot_be_read_is_told_before_anything_listens(store, monkeypatch):
    def refused(self):
        raise StoreError("the bucket says no")

    monkeypatch.setattr(Store, "revisions", refused)
    monkeypatch.setattr("eva_dist.gateway.server.serve_until_asked", None)
    run = CliRunner().invoke(app, ["serve", "--store", "memory://mistyped", "--port", "0"])
    assert isinstance(run.exception, StoreError) and str(run.exception) == "the bucket says no"


def test_settings_that_make_no_sense_are_refused_before_anything_listens(store, tmp_path, monkeypatch):
    refuse = [
        (["--host", "0.0.0.0"], "must be a loopback address"),
        (["--token-file", str(tmp_path / "none")], "cannot be read"),
        (["--upstream", "ftp://x"], "must be http"),
        (["--upstream", "https://user:secret@x"], "must be http"),
        (["--upstream", "https://x", "--upstream-token-env", "NOT_SET"], "must hold a token"),
        (["--store", "ftp://x"], "must be a folder"),
    ]
    for options, message in refuse:
        run = CliRunner().invoke(app, ["serve", "--store", store.url, *options])
        assert run.exit_code != 0 and message in str(run.exception).replace("\n", " "), options
    (tmp_path / "tokens").write_text("")
    options = ["--upstream", "https://x", "--upstream-mode", "redirect", "--token-file", str(tmp_path / "tokens")]
    run = CliRunner().invoke(app, ["serve", "--store", store.url, *options])
    assert isinstance(run.exception, ConfigError) and "show it to the upstream" in str(run.exception)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r"pip install 'eva-dist\[serve\]'"):
        serve(store.url)


def test_a_port_that_is_taken_is_a_bad_setting(store):
    Path(store.url).mkdir()
    with process("--store", store.url, "--port", "0") as served:
        port = served.endpoint.rpartition(":")[2]
        command = [sys.executable, "-m", "eva_dist.cli.main", "serve", "--store", store.url, "--port", port]
        other = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=ROOT)
        assert other.returncode == 2 and "cannot be listened on" in other.stderr


def test_the_gateway_needs_neither_torch_nor_transformers():
    code = "import sys, eva_dist.gateway.app, eva_dist.gateway.server, eva_dist.cli.main; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment()
    )
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert "aiohttp" in loaded and not loaded & {"torch", "transformers", "peft", "ray", "hydra", "huggingface_hub"}
