"""Clients that are slow, and clients that stand still."""

import asyncio
import socket

import pytest

from eva_dist.gateway import limits
from eva_dist.gateway.limits import unsent_bytes, while_taken


def test_who_takes_something_now_and_then_is_waited_for(monkeypatch):
    """However long it takes: here five times as long as a client may take nothing."""
    monkeypatch.setattr(limits, "STALL_S", 0.1)
    looks = []

    def shrinks_for_forty_looks(transport) -> int:
        looks.append(1)
        return max(1000 - len(looks), 960)

    monkeypatch.setattr(limits, "unsent_bytes", shrinks_for_forty_looks)

    async def send() -> None:
        async with while_taken(None):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):  # in the end it stands still
        asyncio.run(send())
    assert len(looks) >= 40


def test_what_the_client_has_not_taken_is_seen():
    async def look() -> None:
        taken = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda reader, writer: taken.set_result(writer), "127.0.0.1", 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        client.setblocking(False)
        writer = await taken
        writer.write(bytes(32 << 20))  # more than the system's buffers hold
        before = unsent_bytes(writer.transport)
        assert 0 < before <= 32 << 20
        received = 0
        while received < 32 << 20:
            received += len(await asyncio.get_running_loop().sock_recv(client, 1 << 20))
            if received >= 16 << 20:
                assert unsent_bytes(writer.transport) < before
        while unsent_bytes(writer.transport):  # until the last of it is acknowledged
            await asyncio.sleep(0)
        client.close()
        writer.close()
        await writer.wait_closed()
        assert unsent_bytes(writer.transport) == unsent_bytes(None) == 0
        server.close()

    asyncio.run(asyncio.wait_for(look(), 20))
