"""Load on the gateway: many clients pull one large artifact, against a plain static file server on this machine.

    python -m jobs.benchmark_gateway [--clients 64] [--megabytes 50] [--rounds 9] [--s3]

Both servers are processes of their own (`eva-dist serve`, and aiohttp's `add_static` over the same bytes), asked by the
same client processes in alternating rounds. Clients read all bytes in the timed part and count them; what they get is
hashed (sha256) in rounds of its own before and after, for both servers alike. `--s3` adds a gateway over moto's S3
server: its throughput is moto's, its memory is ours. Prints a table on standard error, then one line of JSON.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp

REPO, REVISION, FILE = "bench/artifact", "v1", "components.safetensors"
_READ_BYTES = 1 << 20

_STATIC = """
import asyncio, sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
async def main():
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print("serving at http://127.0.0.1:%d " % runner.addresses[0][1], file=sys.stderr, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@dataclass(frozen=True)
class Server:
    """A running server: where its file is, and its process."""

    url: str
    pid: int

    def peak_bytes(self) -> int:
        """Return the most memory that it has held (VmHWM), in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None, "Linux says so"
        return int(found[1]) << 10


@dataclass(frozen=True)
class Round:
    """What one round of all clients gave: the slowest client ends it."""

    seconds: float
    bytes_per_s: float
    median_client_s: float
    right: bool


async def _read_file(session: aiohttp.ClientSession, url: str, take: Callable[[bytes], object]) -> float:
    """Read a file; return when it had come."""
    async with session.get(url) as response:
        response.raise_for_status()
        async for chunk in response.content.iter_chunked(_READ_BYTES):
            take(chunk)
    return time.perf_counter()


async def _run_clients(url: str, takes: Sequence[Callable[[bytes], object]]) -> list[float]:
    """Have a client for each of `takes` read a file at once, and hand it what comes; return each one's seconds."""
    options: dict[str, Any] = {"read_bufsize": _READ_BYTES, "timeout": aiohttp.ClientTimeout(total=None)}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), **options) as session:
        began = time.perf_counter()
        ended = await asyncio.gather(*(_read_file(session, url, take) for take in takes))
    return [at - began for at in ended]


def pull(url: str, count: int) -> tuple[list[float], set[int]]:
    """Have `count` clients of this process pull a file at once; return each one's seconds, and the sizes seen."""
    sizes = [0] * count

    def counted(client: int, chunk: bytes) -> None:
        sizes[client] += len(chunk)

    seconds = asyncio.run(_run_clients(url, [partial(counted, client) for client in range(count)]))
    return seconds, set(sizes)


def hashes(url: str, count: int) -> set[str]:
    """Have `count` clients of this process pull a file at once; return the sha256 of what they got."""
    digests = [hashlib.sha256() for _ in range(count)]
    asyncio.run(_run_clients(url, [digest.update for digest in digests]))
    return {digest.hexdigest() for digest in digests}


def run_round(pool: ProcessPoolExecutor, url: str, shares: Sequence[int], content: bytes, check: bool) -> Round:
    """Have all clients pull once; with `check` once more, untimed, and hashed."""
    began = time.perf_counter()
    results = list(pool.map(pull, [url] * len(shares), shares))
    seconds = time.perf_counter() - began
    right = set().union(*(sizes for _, sizes in results)) == {len(content)}
    if check:
        found = set().union(*pool.map(hashes, [url] * len(shares), shares))
        right = right and found == {hashlib.sha256(content).hexdigest()}
    each = [one for times, _ in results for one in times]
    return Round(seconds, sum(shares) * len(content) / seconds, statistics.median(each), right)


@contextmanager
def started(command: Sequence[str], path: str = "", said: str = r"serving .*?at (http://\S+?) ") -> Iterator[Server]:
    """Start a server process that says where it serves."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with tempfile.TemporaryFile("w+") as log:

        def read_log() -> str:
            log.seek(0)
            return log.read()

        with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
            try:
                while (found := re.search(said, read_log())) is None:
                    assert process.poll() is None, read_log()
                    time.sleep(0.02)
                yield Server(found[1] + path, process.pid)
            finally:
                process.terminate()
                process.wait(30)


def publish(url: str, content: bytes) -> None:
    """Put an artifact of one large file into a store."""
    from eva_dist.store.store import Store

    described = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest = {"fingerprint": described["sha256"], "files": {FILE: described}}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / FILE).write_bytes(content)
        (Path(name) / "manifest.json").write_text(json.dumps(manifest))
        Store(url).publish_folder(Path(name), REPO, REVISION)


@contextmanager
def s3_bucket() -> Iterator[str]:
    """Yield the URL of a bucket of moto's server, in a process of its own."""
    import boto3

    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with started(command, said=r"Running on (http://127\.0\.0\.1:\d+)") as server:
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        os.environ.update({key: "benchmark" for key in keys} | {"AWS_ENDPOINT_URL": server.url})
        os.environ.update(AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")
        boto3.client("s3").create_bucket(Bucket="benchmark")
        yield "s3://benchmark"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", type=int, default=2, help="that the clients are spread over")
    parser.add_argument("--s3", action="store_true", help="also from an S3 store (moto)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and print what they gave."""
    given = parse(arguments)
    content = os.urandom(1 << 20) * given.megabytes
    content = content[:-8] + os.urandom(8)
    shares = [given.clients // given.processes + (i < given.clients % given.processes) for i in range(given.processes)]
    path = f"/{REPO}/resolve/{REVISION}/{FILE}"
    serve = [sys.executable, "-m", "eva_dist.cli.main", "serve", "--port", "0", "--store"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "plain").mkdir()
        (folder / "plain" / FILE).write_bytes(content)
        publish(str(folder / "store"), content)
        servers = {
            "static": stack.enter_context(started([sys.executable, "-c", _STATIC, str(folder / "plain")], f"/{FILE}")),
            "gateway": stack.enter_context(started([*serve, str(folder / "store")], path)),
        }
        pool = stack.enter_context(ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")))
        rounds: dict[str, list[Round]] = {name: [] for name in servers}
        wrong = set()
        for i in range(-1, given.rounds):  # the first warms caches, and is not counted
            for name in sorted(servers, reverse=bool(i % 2)):
                done = run_round(pool, servers[name].url, shares, content, check=i < 0 or i == given.rounds - 1)
                rounds[name] += [done] if i >= 0 else []
                wrong |= set() if done.right else {name}
        peaks = {name: server.peak_bytes() for name, server in servers.items()}
        if given.s3:
            bucket = stack.enter_context(s3_bucket())
            publish(bucket, content)
            over_s3 = stack.enter_context(started([*serve, bucket], path))
            before = over_s3.peak_bytes()
            rounds["gateway, s3"] = [run_round(pool, over_s3.url, shares, content, check=True)]
            wrong |= set() if rounds["gateway, s3"][0].right else {"gateway, s3"}
            peaks["gateway, s3"] = over_s3.peak_bytes()
            peaks["gateway, s3, idle"] = before
    report(given, rounds, peaks, wrong)


def report(
    given: argparse.Namespace, rounds: Mapping[str, Sequence[Round]], peaks: Mapping[str, int], wrong: Collection[str]
) -> None:
    """Print what the rounds gave.

    Args:
        given: the command line.
        rounds: by server, those that count.
        peaks: by server, the most memory in bytes.
        wrong: servers that gave other bytes in any round, a warm-up too.
    """
    print(f"{given.clients} clients, {given.megabytes} MiB each, {given.processes} client processes", file=sys.stderr)
    print(f"{'server':<14}{'round s':>10}{'MB/s':>10}{'client s':>10}{'peak MiB':>10}  bytes", file=sys.stderr)
    for name, done in rounds.items():
        speed = statistics.median(one.bytes_per_s for one in done)
        seconds = statistics.median(one.seconds for one in done)
        client = statistics.median(one.median_client_s for one in done)
        right = "WRONG" if name in wrong else "right"
        figures = f"{seconds:>10.3f}{speed / 1e6:>10.0f}{client:>10.3f}{peaks[name] / 2**20:>10.0f}"
        print(f"{name:<14}{figures}  {right}", file=sys.stderr)
    # Of rounds that followed each other: what else the machine does changes from round to round.
    pairs = [b.bytes_per_s / a.bytes_per_s for a, b in zip(rounds["static"], rounds["gateway"], strict=True)]
    ratio = statistics.median(pairs)
    print(
        f"gateway / static: {ratio:.3f} (median of {len(pairs)} pairs, {min(pairs):.2f} to {max(pairs):.2f})",
        file=sys.stderr,
    )
    result = {
        "ratio": ratio,
        "ratios": pairs,
        "clients": given.clients,
        "megabytes": given.megabytes,
        "peak_bytes": peaks,
        "rounds": {name: [asdict(one) for one in done] for name, done in rounds.items()},
        "right": not wrong,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
