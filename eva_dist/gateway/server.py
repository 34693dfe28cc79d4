"""The gateway as a process: sockets, limits against clients that are slow or many, its log, and how it ends."""

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError

from eva_dist.errors import ConfigError
from eva_dist.gateway.access import TOKEN_NAME, is_loopback

log = logging.getLogger(__name__)

_KEEP_ALIVE_S = 30.0
"""How long a connection may be without a whole request: idle, or with headers that do not end."""
_LARGEST_LINE = 8190
_MOST_HEADERS = 100
_MOST_CONNECTIONS = 2000
_FILES_PER_CONNECTION = 2
_THREADS = 32
"""They wait for files and objects; one that hangs must leave others."""
_THREAD_NAME = "gateway"
_GRACE_S, _LAST_GRACE_S = 8.0, 1.0
"""What downloads under way get when the gateway is asked to end, and then the threads; containers get ten seconds."""
_ASKS_TO_END = (signal.SIGTERM, signal.SIGINT)
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def check_host(host: str, needs_tokens: bool) -> None:
    """Refuse to show a store without tokens to a network.

    Raises:
        ConfigError: the host is not this machine alone, and no token is needed.
    """
    if not needs_tokens and not is_loopback(host):
        raise ConfigError(
            f"--host {host} must be a loopback address (127.0.0.1, ::1, localhost) without --token-file: everybody who "
            "reaches it would read the whole store; make tokens with `eva-dist token NAME --namespace TEAM "
            "--token-file FILE` and give --token-file FILE"
        )


@asynccontextmanager
async def serving(
    app: web.Application, host: str, port: int, *, keep_alive_s: float = _KEEP_ALIVE_S
) -> AsyncIterator[int]:
    """Serve an application for as long as the context lasts; gives the port.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    runner = web.AppRunner(
        app,
        access_log_class=AccessLog,
        access_log=log,
        logger=_of_http(),
        auto_decompress=False,
        handle_signals=False,
        keepalive_timeout=keep_alive_s,
        shutdown_timeout=_GRACE_S / 2,  # aiohttp waits for it twice
        max_line_size=_LARGEST_LINE,
        max_field_size=_LARGEST_LINE,
        max_headers=_MOST_HEADERS,
        lingering_time=2.0,
    )
    threads = ThreadPoolExecutor(_THREADS, _THREAD_NAME)
    asyncio.get_running_loop().set_default_executor(threads)
    await runner.setup()
    try:
        assert runner.server is not None
        factory = _limit_connections(runner.server, _most_connections())
        try:
            listening = await asyncio.get_running_loop().create_server(factory, host, port, backlog=512)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--host {host} --port {port} cannot be listened on: {error}; choose others, or --port 0"
            ) from error
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            listening.close()
    finally:
        await runner.cleanup()
        threads.shutdown(wait=False, cancel_futures=True)


async def serve_until_asked(app: web.Application, host: str, port: int, started: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT; then take no more, and give downloads some seconds. A second one ends at once.

    Ends the process itself if threads hang.
    """
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        asked.set()
        for number in _ASKS_TO_END:  # the next one ends the process at once
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in _ASKS_TO_END:
        loop.add_signal_handler(number, end)
    async with serving(app, host, port) as bound:
        started(bound)
        await asked.wait()
        log.info("asked to end; downloads under way get %g s", _GRACE_S)
    _leave_if_threads_hang()


def _leave_if_threads_hang() -> None:
    """End the process if a thread does not end: one that waits for a dead disk would have Python wait for ever."""
    hanging = [thread for thread in threading.enumerate() if thread.name.startswith(_THREAD_NAME)]
    deadline = time.monotonic() + _LAST_GRACE_S
    for thread in hanging:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in hanging):
        log.warning("threads that wait for the store do not end; leaving them")
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _of_http() -> logging.Logger:
    """Return the logger of what aiohttp finds wrong; what is no HTTP gets its 400, and no traceback in our log."""
    logger = logging.getLogger(f"{__name__}.http")
    if not logger.filters:
        logger.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))
    return logger


def _limit_connections(server: web.Server, most: int) -> Callable[[], asyncio.BaseProtocol]:
    """Return a factory of protocols that tells connections beyond `most` to come again."""
    return lambda: server() if len(server.connections) < most else _Busy()


class _Busy(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so, and close."""
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_BUSY)
        transport.close()


def _most_connections() -> int:
    """Return how many connections there are files for; asks the system for as many as it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_PER_CONNECTION * _MOST_CONNECTIONS + 200
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, (soft - 100) // 2)


class AccessLog(AbstractAccessLogger):
    """One line a request, as facts; neither its query nor its headers, where a token could be."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write the line."""
        facts = {
            "remote": request.remote or "",
            "method": request.method,
            "path": request.rel_url.raw_path,
            "status": response.status,
            "range": response.headers.get("Content-Range", ""),
            "bytes": response.headers.get("Content-Length", "") if request.method != "HEAD" else 0,
            "seconds": f"{time:.3f}",
            "token": request.get(TOKEN_NAME, ""),
            "agent": request.headers.get("User-Agent", "")[:100],
        }
        self.logger.info("request", extra={"facts": {name: value for name, value in facts.items() if value != ""}})
