"""Files are hashed before they are served whole: no client ever completes a file that its manifest did not promise.

A verdict holds for a blob as it was: its sha256 with the version that the store (an object's etag) or the file system
(inode, size, times of the last change) gives; one that changes while it is hashed gets none. Blobs are not changed in
place: the store makes them read-only. Who may write there, and does it between the look at the file and the end of a
transfer, is not noticed here, only by clients, which hash what they got.

While one request has a blob hashed, others that want it wait for that, and it goes on when they leave. Who has waited
long enough, and asked for the whole, may be sent what was hashed on the way: all but the end, which follows the verdict
(`judge_sent`).
"""

import asyncio
import hashlib
import logging
import os
from collections import OrderedDict, deque
from contextlib import aclosing
from dataclasses import dataclass
from typing import BinaryIO, Self

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.store.snapshot import FileEntry
from eva_dist.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, object]

_READ_BYTES = 1 << 20
_AT_ONCE = 2
"""Hashing takes a core; more at once would only take them from who serves."""
_PART_BYTES = 4 << 20
_PARTS_AHEAD = 4
"""Requests to a bucket under way for each blob: one alone is mostly waiting."""
_MOST_VERDICTS = 100_000


@dataclass(frozen=True)
class Blob:
    """A file's blob as it lies in the store now; `opened` in a folder store. Close it, or use it as a context."""

    entry: FileEntry
    version: object
    opened: BinaryIO | None = None

    @property
    def key(self) -> Key:
        """What a verdict is about."""
        return self.entry.sha256, self.version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of: object) -> None:
        if self.opened is not None:
            self.opened.close()


class Verdicts:
    """What is known of the blobs of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[Key, str | None] = OrderedDict()
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def look(self, entry: FileEntry) -> Blob:
        """Return the blob of a file, not judged yet.

        Raises:
            IntegrityError: it is gone, has another size, or lies behind a symlink.
            StoreError: it cannot be read.
        """
        opened = await asyncio.to_thread(self._open_blob, entry)
        if opened is not None:
            return Blob(entry, _file_version(opened.fileno()), opened)
        found = await asyncio.to_thread(self._store.stat, entry)
        if found is None:
            raise _gone_error(entry)
        if found.size != entry.size:
            raise IntegrityError(f"the blob {entry.sha256} has {found.size} bytes, its manifest says {entry.size}")
        return Blob(entry, found.version)

    def is_right(self, blob: Blob) -> bool:
        """Tell whether a blob is known to be right; `IntegrityError` if it is known to be wrong."""
        problem = self._known.get(blob.key)
        if problem is not None:
            raise IntegrityError(problem)
        return blob.key in self._known

    async def judged(self, blob: Blob, patience_s: float) -> bool:
        """Have a blob hashed, and tell whether it is right; False: it is not known yet, and being hashed.

        Raises:
            IntegrityError: it is wrong.
            StoreError: it cannot be read.
        """
        if not self.is_right(blob):
            running = self._running.get(blob.key)
            if running is None:
                # A descriptor of its own: who asked first may be gone, and have closed the file, before its turn comes.
                descriptor = None if blob.opened is None else os.dup(blob.opened.fileno())
                running = self._running[blob.key] = asyncio.create_task(self._judge_blob(blob, descriptor))
                running.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be waiting
            # Not awaited itself: a client that leaves must not end what others wait for.
            done, _ = await asyncio.wait([running], timeout=patience_s)
            for task in done:
                task.result()
        return self.is_right(blob)

    def judge_sent(self, blob: Blob, sha256: str) -> None:
        """Take the hash of what was sent of a blob, but for its end; `IntegrityError` if the end must not follow."""
        problem = None if sha256 == blob.entry.sha256 else _describe_difference(blob.entry, sha256, blob.entry.size)
        if blob.key not in self._known:
            self._note_verdict(blob, problem, None if blob.opened is None else blob.opened.fileno())
        if problem is not None:
            raise IntegrityError(problem)

    async def _judge_blob(self, blob: Blob, descriptor: int | None) -> None:
        try:
            async with self._turns:
                if descriptor is None:
                    problem = await self._hash_remote(blob)
                else:
                    problem = await asyncio.to_thread(_hash_file, descriptor, blob.entry)
            self._note_verdict(blob, problem, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)
            del self._running[blob.key]

    def _note_verdict(self, blob: Blob, problem: str | None, descriptor: int | None) -> None:
        if descriptor is not None and _file_version(descriptor) != blob.version:
            log.warning("%s of sha256 %s changed while it was hashed", blob.entry.path, blob.entry.sha256)
            return
        if problem is not None:
            log.error("%s of sha256 %s is not served: %s", blob.entry.path, blob.entry.sha256, problem)
        self._known[blob.key] = problem
        while len(self._known) > _MOST_VERDICTS:
            self._known.popitem(last=False)

    def _open_blob(self, entry: FileEntry) -> BinaryIO | None:
        path = self._store.local_path(entry)
        if path is None:
            return None
        try:
            return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
        except FileNotFoundError as error:
            raise _gone_error(entry) from error
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}; grant the gateway the right") from error

    async def _hash_remote(self, blob: Blob) -> str | None:
        """Return what is wrong with a blob of another store, None if nothing."""
        digest, size = hashlib.sha256(), blob.entry.size
        spans = deque((start, min(start + _PART_BYTES, size)) for start in range(0, size, _PART_BYTES))
        ahead = deque[asyncio.Task[bytes]]()
        try:
            while spans or ahead:
                while spans and len(ahead) < _PARTS_AHEAD:
                    ahead.append(asyncio.create_task(read_part(self._store, blob.entry, *spans.popleft())))
                await asyncio.to_thread(digest.update, await ahead.popleft())
                if blob.key in self._known:  # somebody was sent all of it meanwhile
                    return self._known[blob.key]
        except (IntegrityError, ArtifactNotFoundError) as error:
            return str(error)
        finally:
            for part in ahead:
                part.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)
        sha256 = digest.hexdigest()
        return None if sha256 == blob.entry.sha256 else _describe_difference(blob.entry, sha256, size)


async def read_part(store: Store, entry: FileEntry, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` of a file, all in memory; errors as for `Store.read_range`."""
    async with aclosing(store.stream(entry, start, end)) as chunks:  # type: ignore[type-var]
        parts = [chunk async for chunk in chunks]
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    if len(content) != end - start:
        raise IntegrityError(f"the blob {entry.sha256} ended after {start + len(content)} of {entry.size} bytes")
    return content


def _file_version(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    # Any program can set st_mtime back; st_ctime is the system's own.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _hash_file(descriptor: int, entry: FileEntry) -> str | None:
    """Return what is wrong with an open file, None if nothing."""
    digest, size = hashlib.sha256(), 0
    while part := os.pread(descriptor, _READ_BYTES, size):
        digest.update(part)
        size += len(part)
        if size > entry.size:
            break
    if (digest.hexdigest(), size) == (entry.sha256, entry.size):
        return None
    return _describe_difference(entry, digest.hexdigest(), size)


def _describe_difference(entry: FileEntry, sha256: str, size: int) -> str:
    return f"the blob has sha256 {sha256} and {size} bytes, its manifest says {entry.sha256} and {entry.size}"


def _gone_error(entry: FileEntry) -> IntegrityError:
    return IntegrityError(f"the blob {entry.sha256} of {entry.path} is missing though its manifest lists it")
