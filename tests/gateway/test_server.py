"""How the gateway's process ends when something in it does not."""

import http.client
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.gateway.test_serve_command import ROOT, environment

HANGS = """
import asyncio, logging, sys, threading
from aiohttp import web
from eva_dist.gateway import server

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
server._GRACE_S, server._LAST_GRACE_S = float(sys.argv[1]), 0.1

async def hang(request):
    threading.Thread(target=lambda: print("hangs", flush=True)).start()
    await asyncio.to_thread(threading.Event().wait)

app = web.Application()
app.router.add_get("/", hang)
asyncio.run(server.serve_until_asked(app, "127.0.0.1", 0, lambda port: print(port, flush=True)))
print("ended in order", flush=True)
"""


@contextmanager
def hanging(grace_s: float) -> Iterator[subprocess.Popen[str]]:
    """A server that has a request whose thread never ends."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-c", HANGS, str(grace_s)], cwd=ROOT, env=environment(), **pipes)
    try:
        client = http.client.HTTPConnection("127.0.0.1", int(server.stdout.readline()), timeout=20)
        client.request("GET", "/")
        assert server.stdout.readline() == "hangs\n"
        yield server
        client.close()
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_thread_that_hangs_does_not_keep_the_process(number):
    with hanging(0.1) as server:
        server.send_signal(number)
        said, log = server.communicate(timeout=10)
        assert server.returncode == 0 and "do not end; leaving them" in log and "in order" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number):
    with hanging(1000.0) as server:
        server.send_signal(number)
        assert any("asked to end" in line for line in server.stderr)
        server.send_signal(number)
        assert server.wait(timeout=10) == -number
