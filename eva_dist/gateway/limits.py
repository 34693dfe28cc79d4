"""Limits to what clients cost: so many downloads for each, and an end for one that takes nothing.

A client is a token at an address; without tokens an address. A slow client keeps its place for as long as it takes,
and takes none of anybody else. One that stands still is told from a slow one by what the system still has to send.
"""

import asyncio
import fcntl
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from eva_dist.gateway.access import TOKEN_NAME
from eva_dist.gateway.responses import Refused

WAIT_S = 2.0
"""How long a request waits for room before it is told to come again; clients give up after ten seconds."""
STALL_S = 120.0
"""How long a client may take nothing at all."""
_MOST_OF_ONE = 128
_LOOKS_IN_STALL = 8


@dataclass
class _Client:
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MOST_OF_ONE))
    users: int = 0


class DownloadSlots:
    """The downloads under way, by client."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, str], _Client] = {}

    @asynccontextmanager
    async def slot_for(self, request: web.Request) -> AsyncIterator[None]:
        """Take one of the client's places; `Refused` with 503 if it has none left."""
        key = request.get(TOKEN_NAME, ""), request.remote or ""
        client = self._clients.setdefault(key, _Client())
        client.users += 1
        try:
            await acquire_soon(
                client.room, f"you have {_MOST_OF_ONE} downloads under way; try again when one has ended"
            )
            try:
                yield
            finally:
                client.room.release()
        finally:
            client.users -= 1
            if not client.users:
                del self._clients[key]


async def acquire_soon(room: asyncio.Semaphore, message: str) -> None:
    """Acquire a semaphore soon; `Refused` with 503 and the message if it cannot be had."""
    try:
        async with asyncio.timeout(WAIT_S):
            await room.acquire()
    except TimeoutError as error:
        raise Refused(503, message, headers={"Retry-After": "5"}) from error


@asynccontextmanager
async def while_taken(transport: asyncio.BaseTransport | None) -> AsyncIterator[None]:
    """Let the block send to a client for as long as the client takes anything; else `TimeoutError`.

    A deadline for a number of bytes would cut slow clients off: a piece of 4 MiB takes minutes on a thin line.
    """
    loop, seen = asyncio.get_running_loop(), -1
    async with asyncio.timeout(STALL_S) as limit:
        timer = loop.call_later(STALL_S / _LOOKS_IN_STALL, lambda: look())

        def look() -> None:
            nonlocal seen, timer
            left = unsent_bytes(transport)
            if left != seen and not limit.expired():
                seen = left
                limit.reschedule(loop.time() + STALL_S)
            timer = loop.call_later(STALL_S / _LOOKS_IN_STALL, look)

        try:
            yield
        finally:
            timer.cancel()


def unsent_bytes(transport: asyncio.BaseTransport | None) -> int:
    """Return what was given to a connection and its client has not acknowledged; 0 where the system does not say."""
    if not isinstance(transport, asyncio.WriteTransport):
        return 0
    try:
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # closed
        return 0
    return transport.get_write_buffer_size() + int(struct.unpack("i", answer)[0])
