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
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import aiohttp

REPO, REVISION, FILE = "bench/artifact", "v1", "components.safetensors"
_READ_BYTES = 1 << 20

_STATIC = """
import sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
async def main():
    import asyncio
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print("serving at http://127.0.0.1:%d " % runner.addresses[0][1], file=sys.stderr, flush=True)
    await asyncio.Event().wait()
import asyncio
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


async def _pull(session: aiohttp.ClientSession, url: str) -> tuple[float, int]:
    """Read a file; return when it had come and its length."""
    size = 0
    async with session.get(url) as response:
        response.raise_for_status()
        async for chunk in response.content.iter_chunked(_READ_BYTES):
            size += len(chunk)
    return time.perf_counter(), size


async def _hash(session: aiohttp.ClientSession, url: str) -> str:
    digest = hashlib.sha256()
    async with session.get(url) as response:
        async for chunk in response.content.iter_chunked(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


async def _clients(url: str, count: int) -> tuple[list[float], set[int]]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=_READ_BYTES, timeout=_forever()) as session:
        began = time.perf_counter()
        ended = await asyncio.gather(*(_pull(session, url) for _ in range(count)))
    return [at - began for at, _ in ended], {size for _, size in ended}


async def _hashes(url: str, count: int) -> set[str]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=_forever()) as session:
        return set(await asyncio.gather(*(_hash(session, url) for _ in range(count))))


def _forever() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None)


def pull(url: str, count: int) -> tuple[list[float], set[int]]:
    """Have `count` clients of this process pull a file at once; return each one's seconds, and the sizes seen."""
    return asyncio.run(_clients(url, count))


def hashes(url: str, count: int) -> set[str]:
    """Have `count` clients of this process pull a file at once; return the sha256 of what they got."""
    return asyncio.run(_hashes(url, count))


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
def started(command: Sequence[str], path: str) -> Iterator[Server]:
    """Start a server process that says on standard error where it serves."""
    log = tempfile.TemporaryFile("w+")
    with subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": os.getcwd()}) as process:
        try:
            while (found := re.search(r"serving .*?at (http://\S+?) ", _read(log))) is None:
                assert process.poll() is None, _read(log)
                time.sleep(0.02)
            yield Server(found[1] + path, process.pid)
        finally:
            process.terminate()
            process.wait(30)
            log.close()


def _read(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


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
    log = tempfile.TemporaryFile("w+")
    with subprocess.Popen(command, stderr=log, stdout=log) as process:
        try:
            while (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", _read(log))) is None:
                assert process.poll() is None, _read(log)
                time.sleep(0.05)
            keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            os.environ.update({key: "benchmark" for key in keys} | {"AWS_ENDPOINT_URL": found[1]})
            os.environ.update(AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")
            boto3.client("s3").create_bucket(Bucket="benchmark")
            yield "s3://benchmark"
        finally:
            process.terminate()
            process.wait(30)
            log.close()


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
