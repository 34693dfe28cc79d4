"""Objects by key, wherever `store.url` says: a thin layer over obstore that speaks our errors.

A key is a relative path of plain parts; `put` makes an object visible at once or not at all, with every backend.
Credentials come from the environment, as each cloud's own tools read them (`AWS_*`, `GOOGLE_*`, `AZURE_*`, instance
roles), and for S3 from `~/.aws` too where boto3 is installed.
"""

import asyncio
import importlib.util
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from eva_dist.config import BUCKETS
from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.store.snapshot import PART_BYTES

CHUNK_BYTES = 1 << 20
_MOST_UPLOAD_PARTS = 9_000
"""S3 takes 10,000 parts of a file."""
RETRIES = 5

_SCHEMES = "a folder, file:///..., memory://..., s3://..., gs://..., az://... or abfs://..."

_memory_stores: dict[str, MemoryStore] = {}
"""Stores in this process's memory by URL: the same URL is the same store."""


@dataclass(frozen=True)
class StoredObject:
    """What the backend says of an object. `version` changes whenever its content does."""

    key: str
    size: int
    modified: datetime
    version: str

    @property
    def second(self) -> int:
        """When it was modified, in whole seconds: some answers of a bucket are no finer."""
        return int(self.modified.timestamp())


class Objects:
    """The objects under a URL, read and written by key.

    Attributes:
        url: as it was given.
        root: the folder, if it is one.
    """

    def __init__(self, url: str) -> None:
        """Touch nothing yet; `StoreError` if `url` can be no store."""
        self.url = url
        self.root = root_folder(url)
        self._opened: ObjectStore | None = None
        if self.root is None:
            self._opened = _open_backend(url)

    def _obstore_backend(self) -> ObjectStore:
        """Return obstore's store; a folder is created with the first object that is put there."""
        if self._opened is None:
            self._opened = LocalStore(self.root, mkdir=True)
        return self._opened

    def head(self, key: str) -> StoredObject | None:
        """Return size, time and version of an object; None if it is not there."""
        if self._is_missing(key):
            return None
        with self._translate_errors("cannot be read"), suppress(FileNotFoundError, NotADirectoryError):
            return _describe_object(obstore.head(self._obstore_backend(), key))
        return None

    def get(self, key: str, at_most: int | None = None) -> bytes | None:
        """Return an object's bytes, None if it is not there; errors as for `get_described`."""
        found = self.get_described(key, at_most)
        return None if found is None else found[1]

    def get_described(self, key: str, at_most: int | None = None) -> tuple[StoredObject, bytes] | None:
        """Return an object's description and its bytes from one request; None if it is not there.

        Raises:
            IntegrityError: it is larger than `at_most` bytes; they are not read.
        """
        if self._is_missing(key):
            return None
        with self._translate_errors("cannot be read"), suppress(FileNotFoundError, NotADirectoryError):
            answer = obstore.get(self._obstore_backend(), key)
            if at_most is not None and answer.meta["size"] > at_most:
                raise IntegrityError(
                    f"store.url={self.url}: {key} has {answer.meta['size']} bytes, more than {at_most}; it is not ours"
                )
            return _describe_object(answer.meta), bytes(answer.bytes())
        return None

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        """Return bytes `start` to `end` (exclusive), None if the object is not there."""
        if start >= end:
            return b""
        if self._is_missing(key):
            return None
        with self._translate_errors("cannot be read"), suppress(FileNotFoundError, NotADirectoryError):
            return bytes(obstore.get_range(self._obstore_backend(), key, start=start, end=end))
        return None

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield bytes `start` to `end`, a chunk at a time; the next one is fetched while one is used.

        Each chunk is a request of its own: a reader that takes hours meets no time limit, and none holds more than
        two chunks.
        """
        self._refuse_symlinks(key)
        size = CHUNK_BYTES if self.root else 4 * CHUNK_BYTES

        async def part(at: int) -> bytes:
            with self._translate_errors("cannot be read"):
                try:
                    return bytes(
                        await obstore.get_range_async(self._obstore_backend(), key, start=at, end=min(at + size, end))
                    )
                except (FileNotFoundError, NotADirectoryError) as error:
                    raise ArtifactNotFoundError(f"store.url={self.url}: {key} is gone; publish it again") from error

        ahead = asyncio.ensure_future(part(start)) if start < end else None
        try:
            for at in range(start, end, size):
                assert ahead is not None
                chunk = await ahead
                ahead = asyncio.ensure_future(part(at + size)) if at + size < end else None
                yield chunk
        finally:
            if ahead is not None:
                ahead.cancel()
                with suppress(asyncio.CancelledError, StoreError):
                    await ahead

    def put(self, key: str, content: bytes, create: bool = False) -> bool:
        """Write an object. With `create`, only if there is none yet; False: there was one, and it stands."""
        self._refuse_symlinks(key)
        with self._translate_errors("cannot be written"):
            try:
                obstore.put(self._obstore_backend(), key, content, mode="create" if create else "overwrite")
            except AlreadyExistsError:
                return False
        return True

    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a file, in parts if it is large; in a folder nobody writes into it afterwards."""
        self._refuse_symlinks(key)
        # larger parts for a larger file: the number of parts is limited, their size is not
        part = max(PART_BYTES, -(-path.stat().st_size // _MOST_UPLOAD_PARTS))
        with self._translate_errors("cannot be written"):
            obstore.put(self._obstore_backend(), key, path, chunk_size=part, max_concurrency=4)
            if self.root is not None:
                (self.root / key).chmod(0o444)

    def touch(self, key: str) -> None:
        """Set an object's time to now; one that is gone, or has just changed, is left alone."""
        if self.root is not None:
            try:
                return os.utime(self.path(key))
            except FileNotFoundError:
                return None
            except PermissionError:  # a colleague's file, which can be replaced but not changed
                pass
        known = self.get_described(key)
        if known is not None:
            # A bucket has no utime: the same bytes are put again, and only onto the version that was read.
            mode: Any = {"e_tag": known[0].version} if self.root is None else "overwrite"
            with self._translate_errors("cannot be written"), suppress(PreconditionError, FileNotFoundError):
                obstore.put(self._obstore_backend(), key, known[1], mode=mode)
        return None

    def delete(self, key: str) -> None:
        """Remove an object; one that is gone is fine."""
        self._refuse_symlinks(key)
        with self._translate_errors("cannot be written"), suppress(FileNotFoundError):
            obstore.delete(self._obstore_backend(), key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects below a prefix, sorted by key."""
        if self._is_missing(prefix):
            return
        with self._translate_errors("cannot be listed"):
            listed = [meta for chunk in obstore.list(self._obstore_backend(), prefix + "/") for meta in chunk]
        yield from sorted(map(_describe_object, listed), key=lambda found: found.key)

    def path(self, key: str) -> Path:
        """Return where a folder store has an object, inside the folder for certain.

        Raises:
            IntegrityError: a symlink stands in the way.
        """
        assert self.root is not None, "only a folder has paths"
        self._refuse_symlinks(key)
        return self.root / key

    def _is_missing(self, key: str) -> bool:
        """Tell whether a folder has nothing under that key, without creating anything. Refuses symlinks."""
        if self.root is None:
            return False
        self._refuse_symlinks(key)
        return not (self.root / key).exists()

    def _refuse_symlinks(self, key: str) -> None:
        """Raise `IntegrityError` if a key's file is reached over a symlink: it could lead out of the store."""
        if self.root is None:
            return
        root = os.path.realpath(self.root)
        if os.path.realpath(os.path.join(root, key)) != os.path.join(root, key):
            raise IntegrityError(
                f"store.url={self.url}: {key} is reached over a symlink, which a store has none of; remove the link"
            )

    @contextmanager
    def _translate_errors(self, what: str) -> Iterator[None]:
        """Turn obstore's errors into a `StoreError` that names the store, the reason and the remedy."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            if what == "cannot be read":
                raise
            raise self._refusal_error(what, error) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreError(
                f"store.url={self.url} {what}: {_first_line(error)}; set the environment's credentials, or ask for "
                "the right to read and write there"
            ) from error
        except (BaseError, OSError, ValueError) as error:
            raise self._refusal_error(what, error) from error

    def _refusal_error(self, what: str, error: Exception) -> StoreError:
        remedy = "make room or grant the rights there" if self.root else "check the address, the network and the rights"
        return StoreError(f"store.url={self.url} {what}: {_first_line(error)}; {remedy}, or choose another store.url")


def root_folder(url: str) -> Path | None:
    """Return the absolute folder that `store.url` names, a path or a `file:///` URL; None if it is another URL.

    Raises:
        StoreError: it is empty, or a `file://` URL of another host.
    """
    if not url:
        raise StoreError(f"store.url='' must be {_SCHEMES}; e.g. store.url=file:///srv/eva")
    if "://" not in url:
        return Path(url).expanduser().absolute()
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise StoreError(f"store.url={url} must name a folder of this machine: file:///...; drop {parts.netloc!r}")
    return Path(url2pathname(parts.path))


def _open_backend(url: str) -> ObjectStore:
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return _memory_stores.setdefault(url.rstrip("/"), MemoryStore())
    if not url.startswith(BUCKETS):
        raise StoreError(f"store.url={url} must be {_SCHEMES}; use one of them")
    options: dict[str, Any] = {
        "client_options": {"connect_timeout": "10s", "timeout": "300s"} | _http_options(),
        "retry_config": {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=60)},
    }
    if scheme in ("s3", "s3a") and "AWS_ACCESS_KEY_ID" not in os.environ and importlib.util.find_spec("boto3"):
        from obstore.auth.boto3 import Boto3CredentialProvider

        with suppress(ValueError):  # no profile: instance roles and web identity are obstore's own business
            options["credential_provider"] = Boto3CredentialProvider()
    try:
        return from_url(url, **options)
    except (BaseError, ValueError, TypeError) as error:
        raise StoreError(
            f"store.url={url} cannot be opened: {_first_line(error)}; check the URL and the environment"
        ) from error


def _http_options() -> dict[str, Any]:
    """Return the option that allows http, if the environment names an http endpoint: a MinIO or Ceph in the house."""
    named = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ENDPOINT"))
    return {"allow_http": True} if any(url.startswith("http://") for url in named) else {}


def _describe_object(meta: Any) -> StoredObject:
    modified = meta["last_modified"].astimezone(UTC)
    version = meta.get("e_tag") or meta.get("version") or f"{modified.timestamp()}-{meta['size']}"
    return StoredObject(meta["path"], meta["size"], modified, str(version))


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}{f' ({error.filename})' if error.filename else ''}"
    return str(error).partition("\n\nDebug source")[0].replace("\n", " ") or type(error).__name__


def scratch_name() -> str:
    """Return a name that nobody else has."""
    return secrets.token_hex(8)
