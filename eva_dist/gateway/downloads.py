"""HEAD and GET of an artifact's files: metadata as the Hub gives it, ranges, and bytes that were verified.

Files of a folder store go from the file to the socket in the kernel (sendfile). Those of other stores are fetched a
window at a time, and the next one when the client has taken the last: what a slow client costs is one window, and a
client may have only so many downloads (`limits`). Fetching has a limit over all; a client that stands still is no part
of it, because nothing is fetched for it. A client that takes less than a window in `limits.STALL_S` seconds is let go.
"""

import asyncio
import hashlib
import logging
import mimetypes
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import BinaryIO
from urllib.parse import quote

from aiohttp import web

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.gateway import limits
from eva_dist.gateway.index import Entry
from eva_dist.gateway.limits import DownloadSlots, acquire_soon, while_taken
from eva_dist.gateway.requests import ByteRange, byte_range, fails_if_match, has_current
from eva_dist.gateway.responses import COMMIT_HEADER, Refused, no_entry
from eva_dist.gateway.verification import Blob, Verdicts, read_part
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry
from eva_dist.store.store import Store

log = logging.getLogger(__name__)

SAFE_HEADERS = {"Content-Security-Policy": "default-src 'none'; sandbox", "X-Content-Type-Options": "nosniff"}
"""With `Content-Disposition: attachment`: no browser runs what an artifact holds."""

_WINDOW_BYTES = 2 << 20
_SENDFILE_BYTES = 4 << 20
_SMALL_BYTES = 1 << 20
"""Files of other stores up to this size are read, verified and sent in one."""
_WHOLE_PATIENCE_S = 3.0
"""How long the first byte of a whole file waits for its verdict; then the last ones do. Clients give up after 10 s."""
_RANGE_PATIENCE_S = 6.0
"""How long a part waits for the verdict on its file, before the client is told to come again."""
_WRITE_BYTES = 256 << 10
"""What is given to the socket at a time: it copies what it cannot send."""
_FETCHES_AT_ONCE = 32
_SHOWN = {".json": "application/json", ".md": "text/plain", ".txt": "text/plain", ".svg": "image/svg+xml"}


class Downloads:
    """The files of a store's artifacts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._verdicts = Verdicts(store)
        self._slots = DownloadSlots()
        self._fetches = asyncio.Semaphore(_FETCHES_AT_ONCE)

    async def answer(self, request: web.Request, entry: Entry, path: str, pinned: bool) -> web.StreamResponse:
        """Answer HEAD or GET of a file.

        Args:
            request: its method, and its headers for conditions and ranges.
            entry: the revision.
            path: of the file in the artifact.
            pinned: whether the URL means these bytes for ever: it has a commit.

        Raises:
            Refused: 404, 412, 416, 503, or 409: the blob is not what the manifest says.
            StoreError: the store cannot be read now.
        """
        file = entry.snapshot.files.get(path)
        if file is None:
            raise no_entry(entry, path)
        headers = _file_headers(entry, file, pinned)
        if fails_if_match(request, file.sha256):
            raise Refused(412, f"{path} is another one now: its ETag is none that If-Match names")
        if has_current(request, file.sha256):
            return web.Response(status=304, headers=headers)
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(file.size)})
        span = byte_range(request.headers, file.sha256, file.size)
        if span is None:
            raise Refused(416, f"{path} has {file.size} bytes", headers={"Content-Range": f"bytes */{file.size}"})
        if span.partial:
            headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{span.size}"
        response = web.StreamResponse(status=206 if span.partial else 200, headers=headers)
        response.content_length = span.end - span.start
        try:
            await self._send_verified(request, response, entry, file, span)
        except (IntegrityError, ArtifactNotFoundError) as error:
            log.error("%s@%s: %s", entry.revision.repo_id, entry.revision.revision, error)
            raise Refused(
                409,
                f"{path} is damaged in the store: its bytes are not those that {MANIFEST_FILE} promises, so they are "
                "not sent; publish the artifact again",
            ) from error
        return response

    async def _send_verified(
        self, request: web.Request, response: web.StreamResponse, entry: Entry, file: FileEntry, span: ByteRange
    ) -> None:
        """Send the file's bytes, all of them verified but where that takes long: then the last ones are kept back.

        Raises before the first byte, or not at all.
        """
        if file.path == MANIFEST_FILE:
            return await _send_bytes(request, response, entry.snapshot.content, span)
        if file.size <= _SMALL_BYTES and self._store.root is None:
            return await _send_bytes(request, response, await asyncio.to_thread(self._store.read, file), span)
        with await self._verdicts.look(file) as blob:
            whole = (span.start, span.end) == (0, file.size)
            right = await self._verdicts.judged(blob, _WHOLE_PATIENCE_S if whole else _RANGE_PATIENCE_S)
            if right and blob.opened is not None:
                return await _send_file(request, response, blob.opened, span)
            if not right and not whole:
                message = f"{file.path} is being verified, which takes longer than clients wait; ask again"
                raise Refused(503, message, headers={"Retry-After": "10"})
            async with self._slots.slot_for(request):
                windows = self._read_windows(blob, span)
                return await send_stream(request, response, windows if right else self._hash_while_sent(blob, windows))

    async def _read_windows(self, blob: Blob, span: ByteRange) -> AsyncIterator[bytes]:
        for start in range(span.start, span.end, _WINDOW_BYTES):
            if start == span.start:
                await acquire_soon(self._fetches, "the gateway waits for its store; try again later")
            else:
                await self._fetches.acquire()
            try:
                window = await self._fetch_window(blob, start, min(start + _WINDOW_BYTES, span.end))
            finally:
                self._fetches.release()
            yield window
            del window  # not two of them while the next one comes

    async def _fetch_window(self, blob: Blob, start: int, end: int) -> bytes:
        if blob.opened is None:
            return await read_part(self._store, blob.entry, start, end)
        window = await asyncio.to_thread(os.pread, blob.opened.fileno(), end - start, start)
        if len(window) != end - start:
            raise IntegrityError(f"the blob {blob.entry.sha256} was cut short while it was read")
        return window

    async def _hash_while_sent(self, blob: Blob, windows: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the windows of a whole file, the last one only if all of them are what the manifest promises."""
        digest, position, right = hashlib.sha256(), 0, False
        async with aclosing(windows):  # type: ignore[type-var]
            async for window in windows:
                position += len(window)
                right = right or self._verdicts.is_right(blob)
                if not right:
                    await asyncio.to_thread(digest.update, window)
                    if position == blob.entry.size:
                        self._verdicts.judge_sent(blob, digest.hexdigest())
                yield window
                del window


async def send_stream(request: web.Request, response: web.StreamResponse, chunks: AsyncIterator[bytes]) -> None:
    """Send what comes, and no faster than the client takes it.

    The first chunk is awaited before anything is sent, so that an error of the source becomes an answer; a later one
    ends the connection: the client sees that bytes are missing, and asks for the rest.
    """
    async with aclosing(chunks):  # type: ignore[type-var]
        chunk = await anext(chunks, None)
        await response.prepare(request)
        try:
            while chunk is not None:
                for start in range(0, len(chunk), _WRITE_BYTES):
                    async with while_taken(request.transport):
                        await response.write(memoryview(chunk)[start : start + _WRITE_BYTES])
                del chunk  # not two of them while the next one comes
                chunk = await anext(chunks, None)
            await response.write_eof()
        except TimeoutError:
            _abort_connection(request)
        except ConnectionError:
            log.debug("the client left")
        except (StoreError, OSError) as error:
            log.error("%s ended early: %s", request.path, error)
            _close_connection(request)


async def _send_bytes(request: web.Request, response: web.StreamResponse, content: bytes, span: ByteRange) -> None:
    async def once() -> AsyncIterator[bytes]:
        for start in range(span.start, span.end, _WINDOW_BYTES):
            yield content[start : min(start + _WINDOW_BYTES, span.end)]

    await send_stream(request, response, once())


async def _send_file(request: web.Request, response: web.StreamResponse, opened: BinaryIO, span: ByteRange) -> None:
    """Have the kernel send a part of a file, a piece at a time so that other connections have their turn."""
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    try:
        for start in range(span.start, span.end, _SENDFILE_BYTES):
            transport = request.transport
            if transport is None:
                return
            async with while_taken(transport):
                sent = await loop.sendfile(transport, opened, start, min(_SENDFILE_BYTES, span.end - start))
            if sent < min(_SENDFILE_BYTES, span.end - start):
                log.error("%s ended early: its file was cut short", request.path)
                return _close_connection(request)
        await response.write_eof()
    except TimeoutError:
        _abort_connection(request)
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: the transport is closing
        log.debug("the client left: %s", error)
        _close_connection(request)
    except OSError as error:
        log.error("%s ended early: %s", request.path, error)
        _close_connection(request)


def _close_connection(request: web.Request) -> None:
    """End the connection in order: what was sent arrives, and clients go on from there."""
    if request.transport is not None:
        request.transport.close()


def _abort_connection(request: web.Request) -> None:
    log.warning("%s: the client took nothing for %g s", request.path, limits.STALL_S)
    if request.transport is not None:
        request.transport.abort()


def _file_headers(entry: Entry, file: FileEntry, pinned: bool) -> dict[str, str]:
    return {
        "ETag": f'"{file.sha256}"',
        "X-Linked-Etag": f'"{file.sha256}"',
        "X-Linked-Size": str(file.size),
        COMMIT_HEADER: entry.snapshot.commit,
        "Accept-Ranges": "bytes",
        "Content-Type": _content_type(file.path),
        "Content-Disposition": disposition(file.path),
        "Cache-Control": "private, max-age=31536000, immutable" if pinned else "private, no-cache",
        **SAFE_HEADERS,
    }


def disposition(path: str) -> str:
    """Return the header that has a browser save a file instead of showing it."""
    name = path.rpartition("/")[2]
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_. ") else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _content_type(path: str) -> str:
    suffix = f".{path.rpartition('.')[2].lower()}"
    if suffix in _SHOWN:
        return _SHOWN[suffix] + ("; charset=utf-8" if not _SHOWN[suffix].startswith("image") else "")
    guessed = mimetypes.types_map.get(suffix, "")
    return guessed if guessed.startswith("image/") else "application/octet-stream"
