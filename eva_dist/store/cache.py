"""Artifacts from elsewhere, kept on this machine under `EVA_DIST_CACHE`, else `~/.cache/eva_dist`.

    artifacts/snapshots/<sha256 of manifest.json>/...   files of one artifact, each moved in when it was verified
    artifacts/tensors/<aa>/<sha256>                     tensors that came without the rest of their file
    artifacts/known/<sha256 of what was asked>.json     which manifest answered a name, a commit, a fingerprint
    artifacts/incoming/<random>                         what is arriving

Every file is named by what is in it, directly or by its manifest, and hashed again before it is used: a cache that
was cut, or tampered with, is filled anew. Several processes may fill it at once: each writes beside, and renames.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from eva_dist.errors import IntegrityError
from eva_dist.hashing import sha256_of_file
from eva_dist.store.durable_files import remove_older, translate_os_errors
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry, Snapshot, read_snapshot

_STALE_SECONDS = 24 * 3600
"""How old a file in `incoming` must be before it counts as left by a process that was killed."""


def cache_root() -> Path:
    """Return this user's cache folder: `EVA_DIST_CACHE`, else `~/.cache/eva_dist`."""
    return Path(os.environ.get("EVA_DIST_CACHE") or "~/.cache/eva_dist").expanduser().absolute()


@dataclass(frozen=True)
class CachedAnswer:
    """The artifact that a reference named when it was last asked for, and its commit as the place calls it."""

    commit: str
    snapshot: Snapshot

    def never_moves(self, revision: str | None) -> bool:
        """Tell whether a revision names this very artifact for good, so that no server need be asked again.

        Only the commit that we compute from the manifest does, and a whole fingerprint. What a server calls a commit,
        or a manifest its fingerprint, proves nothing: either may say `main`.
        """
        if revision is None:
            return False
        is_whole_fingerprint = re.fullmatch("[0-9a-f]{64}", revision) is not None
        return revision == (self.snapshot.fingerprint if is_whole_fingerprint else self.snapshot.commit)


class Cache:
    """Artifacts of other places, kept in a folder; the folder is made when the first thing is kept."""

    def __init__(self, root: Path | None = None) -> None:
        """Use the folder `root`, else the one of the environment (`cache_root`)."""
        self.root = (cache_root() if root is None else root) / "artifacts"

    def folder(self, snapshot: Snapshot) -> Path:
        """Return the folder for the files of an artifact; not all of them need be there."""
        return self.root / "snapshots" / snapshot.files[MANIFEST_FILE].sha256

    def holds(self, snapshot: Snapshot, entry: FileEntry) -> bool:
        """Tell whether a file is kept with the bytes that the manifest promises; it is hashed again each time."""
        return _is_whole(self.folder(snapshot) / entry.path, entry.size, entry.sha256)

    def receive(self, snapshot: Snapshot, entry: FileEntry, chunks: Iterable[bytes], where: str) -> None:
        """Write a file from the bytes that arrive, verified.

        Raises:
            IntegrityError: they are not the bytes that the manifest promises; none of them are kept.
            StoreError: the cache cannot be written.
        """
        digest, size = hashlib.sha256(), 0
        with self._written_beside(self.folder(snapshot) / entry.path) as new, new.open("wb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > entry.size:  # now, not at the end: a server could go on until the disk is full
                    raise IntegrityError(f"{where}: {entry.path} is larger than its manifest says, {entry.size} bytes")
                digest.update(chunk)
                file.write(chunk)
            if (size, digest.hexdigest()) != (entry.size, entry.sha256):
                raise IntegrityError(
                    f"{where}: {entry.path} has sha256 {digest.hexdigest()} and {size} bytes, but its manifest says "
                    f"{entry.sha256} and {entry.size}; nothing of it was kept: tell who published it"
                )

    def keep_manifest(self, snapshot: Snapshot) -> None:
        """Keep the manifest of an artifact."""
        path = self.folder(snapshot) / MANIFEST_FILE
        if not _is_whole(path, len(snapshot.content), path.parent.name):
            with self._written_beside(path) as new:
                new.write_bytes(snapshot.content)

    def remember(self, asked: tuple[str, ...], commit: str, snapshot: Snapshot) -> None:
        """Record which artifact a reference named: `asked` is the place, the repository and the revision."""
        self.keep_manifest(snapshot)
        said = {"asked": asked, "commit": commit, "manifest": self.folder(snapshot).name}
        with self._written_beside(self._answer_path(asked)) as new:
            new.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

    def recall(self, asked: tuple[str, ...]) -> CachedAnswer | None:
        """Return which artifact a reference named; None if that was not recorded, or its manifest is damaged."""
        try:
            said = json.loads(self._answer_path(asked).read_text(encoding="utf-8"))
            name = str(said["manifest"])
            content = (self.root / "snapshots" / Path(name).name / MANIFEST_FILE).read_bytes()
            if hashlib.sha256(content).hexdigest() != name:
                return None
            return CachedAnswer(str(said["commit"]), read_snapshot(content))
        except (OSError, ValueError, KeyError, TypeError, IntegrityError):
            return None

    def tensor(self, sha256: str) -> bytes | None:
        """Return the bytes of a tensor; None if it is not kept, or damaged."""
        try:
            content = self._tensor_path(sha256).read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def keep_tensor(self, sha256: str, content: bytes) -> None:
        """Keep the bytes of a tensor, whose sha256 the caller has checked."""
        with self._written_beside(self._tensor_path(sha256)) as new:
            new.write_bytes(content)

    def _tensor_path(self, sha256: str) -> Path:
        return self.root / "tensors" / sha256[:2] / sha256

    def _answer_path(self, asked: tuple[str, ...]) -> Path:
        return self.root / "known" / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.json"

    def _translate_errors(self) -> AbstractContextManager[None]:
        remedy = "make room or grant the rights there, or set EVA_DIST_CACHE to another folder"
        return translate_os_errors(f"EVA_DIST_CACHE: {self.root} cannot be written", remedy)

    @contextmanager
    def _written_beside(self, target: Path) -> Iterator[Path]:
        """Give a path to write to; the file takes the target's name by one rename, or is removed if the writing fails.

        So whoever looks at the target finds a whole file or none, and of two writers the last one wins.
        """
        new = self.root / "incoming" / secrets.token_hex(8)
        with self._translate_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            new.parent.mkdir(parents=True, exist_ok=True)
            remove_older(new.parent, _STALE_SECONDS)
        try:
            with self._translate_errors():
                yield new
                os.replace(new, target)
        finally:
            new.unlink(missing_ok=True)


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    try:
        return path.stat().st_size == size and sha256_of_file(path) == sha256
    except OSError:
        return False


def report_sizes(chunks: Iterable[bytes], arrived: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the chunks, calling `arrived` with the size of each."""
    for chunk in chunks:
        arrived(len(chunk))
        yield chunk
