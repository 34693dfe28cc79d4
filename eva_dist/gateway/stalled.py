"""Telling a client that stands still from one that is slow: by what the system still has to send to it."""

import asyncio
import fcntl
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

STALL_S = 120.0
"""How long a client may take nothing at all."""
_LOOKS = 8
"""How often we look in that time."""


@asynccontextmanager
async def while_taken(transport: asyncio.BaseTransport | None) -> AsyncIterator[None]:
    """Let the block send to a client for as long as the client takes anything; else `TimeoutError`.

    A deadline for a number of bytes would cut slow clients off: a piece of 4 MiB takes minutes on a thin line.
    """
    loop, seen = asyncio.get_running_loop(), -1
    async with asyncio.timeout(STALL_S) as limit:
        timer = loop.call_later(STALL_S / _LOOKS, lambda: look())

        def look() -> None:
            nonlocal seen, timer
            left = unsent_bytes(transport)
            if left != seen and not limit.expired():
                seen = left
                limit.reschedule(loop.time() + STALL_S)
            timer = loop.call_later(STALL_S / _LOOKS, look)

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
