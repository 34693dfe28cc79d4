"""Files are hashed once before they are served: no byte that its manifest did not promise leaves the gateway.

A verdict holds for a blob as it was: its sha256 with the version that the store (an object's etag) or the file system
(inode, size, time of the last change) gives. While one request has a blob hashed, others that want it wait for that.
"""

import asyncio
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.store.snapshot import FileEntry
from eva_dist.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, object]

_READ_BYTES = 1 << 20
_AT_ONCE = 2
"""Hashing takes a core; more at once would only take them from who serves."""
_MOST_VERDICTS = 100_000


class Verdicts:
    """What is known of the blobs of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[Key, str | None] = OrderedDict()
        self._running: dict[Key, asyncio.Task[str | None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def open_local(self, entry: FileEntry) -> BinaryIO | None:
        """Open a file of a folder store, verified; None if the store is no folder.

        Raises:
            IntegrityError: it is not what the manifest says, is gone, or lies behind a symlink.
            StoreError: it cannot be read.
        """
        opened = await asyncio.to_thread(self._open, entry)
        if opened is None:
            return None
        try:
            found = os.fstat(opened.fileno())
            version = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
            await self._refuse_unless_right(entry, version, lambda: partial(_hash, os.dup(opened.fileno()), entry))
        except BaseException:
            opened.close()
            raise
        return opened

    async def check_remote(self, entry: FileEntry) -> None:
        """Have a blob of another store verified; errors as for `open_local`."""
        found = await asyncio.to_thread(self._store.stat, entry)
        if found is None:
            raise _gone(entry)
        await self._refuse_unless_right(entry, found.version, lambda: partial(self._hash_remote, entry))

    async def _refuse_unless_right(
        self, entry: FileEntry, version: object, prepare: Callable[[], Callable[[], str | None]]
    ) -> None:
        """Raise `IntegrityError` if the blob is known, or found, to be wrong.

        `prepare` gives the check, and holds what it needs: who asked first may be gone before its turn comes.
        """
        key = entry.sha256, version
        if key not in self._known:
            if key not in self._running:
                self._running[key] = asyncio.create_task(self._judge(key, entry, prepare()))
            # Shielded: a client that leaves must not end what others wait for.
            await asyncio.shield(self._running[key])
        problem = self._known.get(key)
        if problem is not None:
            raise IntegrityError(problem)

    async def _judge(self, key: Key, entry: FileEntry, check: Callable[[], str | None]) -> str | None:
        try:
            async with self._turns:
                problem = await asyncio.to_thread(check)
            if problem is not None:
                log.error("%s of sha256 %s is not served: %s", entry.path, entry.sha256, problem)
            self._known[key] = problem
            while len(self._known) > _MOST_VERDICTS:
                self._known.popitem(last=False)
            return problem
        finally:
            del self._running[key]

    def _open(self, entry: FileEntry) -> BinaryIO | None:
        path = self._store.local_path(entry)
        if path is None:
            return None
        try:
            return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
        except FileNotFoundError as error:
            raise _gone(entry) from error
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}; grant the gateway the right") from error

    def _hash_remote(self, entry: FileEntry) -> str | None:
        try:
            self._store.verify_file(entry)
        except (IntegrityError, ArtifactNotFoundError) as error:
            return str(error)
        return None


def _hash(descriptor: int, entry: FileEntry) -> str | None:
    """Return what is wrong with an open file, None if nothing; closes the descriptor."""
    try:
        digest, size = hashlib.sha256(), 0
        while part := os.pread(descriptor, _READ_BYTES, size):
            digest.update(part)
            size += len(part)
            if size > entry.size:
                break
    finally:
        with suppress(OSError):
            os.close(descriptor)
    if (digest.hexdigest(), size) == (entry.sha256, entry.size):
        return None
    return (
        f"the blob has sha256 {digest.hexdigest()} and {size} bytes, its manifest says {entry.sha256} and {entry.size}"
    )


def _gone(entry: FileEntry) -> IntegrityError:
    return IntegrityError(f"the blob {entry.sha256} of {entry.path} is missing though its manifest lists it")
