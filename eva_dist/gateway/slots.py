"""Room for downloads that cost memory: so many for each client, so that those of one that stands still are its own.

A client is a token at an address; without tokens an address. A slow client keeps its place for as long as it takes,
and takes none of anybody else.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from eva_dist.gateway.access import TOKEN_NAME
from eva_dist.gateway.responses import Refused

WAIT_S = 2.0
"""How long a request waits for room before it is told to come again; clients give up after ten seconds."""
_MOST_OF_ONE = 128


@dataclass
class _Client:
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MOST_OF_ONE))
    users: int = 0


class Slots:
    """The downloads under way, by client."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, str], _Client] = {}

    @asynccontextmanager
    async def of(self, request: web.Request) -> AsyncIterator[None]:
        """Take one of the client's places; `Refused` with 503 if it has none left."""
        key = request.get(TOKEN_NAME, ""), request.remote or ""
        client = self._clients.setdefault(key, _Client())
        client.users += 1
        try:
            await take(client.room, f"you have {_MOST_OF_ONE} downloads under way; try again when one has ended")
            try:
                yield
            finally:
                client.room.release()
        finally:
            client.users -= 1
            if not client.users:
                del self._clients[key]


async def take(room: asyncio.Semaphore, message: str) -> None:
    """Acquire a semaphore soon; `Refused` with 503 and the message if it cannot be had."""
    try:
        async with asyncio.timeout(WAIT_S):
            await room.acquire()
    except TimeoutError as error:
        raise Refused(503, message, headers={"Retry-After": "5"}) from error
