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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eva_dist.errors import IntegrityError, StoreError
from eva_dist.hashing import sha256_of_file
from eva_dist.store.files import remove_older
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry, Snapshot, read_snapshot

_FINGERPRINT = re.compile("[0-9a-f]{64}")
_STALE_SECONDS = 24 * 3600
"""How long what a killed process has left is left alone."""


@dataclass(frozen=True)
class Known:
    """What answered a question before: the commit as the place calls it, and the artifact."""

    commit: str
    snapshot: Snapshot

    def never_moves(self, revision: str | None) -> bool:
        """Whether a revision names this very artifact, for good.

        It is the commit that we compute of the manifest, or a whole fingerprint: of what a server or a manifest
        calls its commit or its fingerprint, `main` for one, nothing lasts.
        """
        if revision is None:
            return False
        of_its_length = self.snapshot.fingerprint if _FINGERPRINT.fullmatch(revision) else self.snapshot.commit
        return revision == of_its_length


class Cache:
    """The cache in a folder; nothing is made before something is kept."""

    def __init__(self, root: Path | None = None) -> None:
        """Take `root`, else the environment's."""
        place = Path(os.environ.get("EVA_DIST_CACHE") or "~/.cache/eva_dist").expanduser().absolute()
        self.root = (place if root is None else root) / "artifacts"

    def folder(self, snapshot: Snapshot) -> Path:
        """Return where the files of an artifact are, those that are kept."""
        return self.root / "snapshots" / snapshot.files[MANIFEST_FILE].sha256

    def holds(self, snapshot: Snapshot, entry: FileEntry) -> bool:
        """Whether a file is kept, with the bytes that the manifest says."""
        return _is_whole(self.folder(snapshot) / entry.path, entry.size, entry.sha256)

    def receive(self, snapshot: Snapshot, entry: FileEntry, chunks: Iterable[bytes], where: str) -> None:
        """Keep a file whose bytes arrive; `IntegrityError` if they are not those of the manifest: none are kept."""
        digest, size = hashlib.sha256(), 0
        with self._placed(self.folder(snapshot) / entry.path) as new, new.open("wb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > entry.size:
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
            with self._placed(path) as new:
                new.write_bytes(snapshot.content)

    def remember(self, asked: tuple[str, ...], commit: str, snapshot: Snapshot) -> None:
        """Keep which artifact answered."""
        self.keep_manifest(snapshot)
        said = {"asked": asked, "commit": commit, "manifest": self.folder(snapshot).name}
        with self._placed(self._known(asked)) as new:
            new.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

    def recall(self, asked: tuple[str, ...]) -> Known | None:
        """Return which artifact answered, None if that is not known, or its manifest is gone."""
        try:
            said = json.loads(self._known(asked).read_text(encoding="utf-8"))
            name = str(said["manifest"])
            content = (self.root / "snapshots" / Path(name).name / MANIFEST_FILE).read_bytes()
            if hashlib.sha256(content).hexdigest() != name:
                return None
            return Known(str(said["commit"]), read_snapshot(content))
        except (OSError, ValueError, KeyError, TypeError, IntegrityError):
            return None

    def tensor(self, sha256: str) -> bytes | None:
        """Return the bytes of a tensor that is kept."""
        try:
            content = self._tensor(sha256).read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def keep_tensor(self, sha256: str, content: bytes) -> None:
        """Keep the bytes of a tensor, whose sha256 the caller has checked."""
        with self._placed(self._tensor(sha256)) as new:
            new.write_bytes(content)

    def _tensor(self, sha256: str) -> Path:
        return self.root / "tensors" / sha256[:2] / sha256

    def _known(self, asked: tuple[str, ...]) -> Path:
        return self.root / "known" / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.json"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an `OSError` of the cache's folder into a `StoreError` with the remedy."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"EVA_DIST_CACHE: {self.root} cannot be written: {error.strerror or error}; make room or grant the "
                "rights there, or set EVA_DIST_CACHE to another folder"
            ) from error

    @contextmanager
    def _placed(self, target: Path) -> Iterator[Path]:
        """Give a new path; it takes the target's name at the end, or is removed."""
        new = self.root / "incoming" / secrets.token_hex(8)
        with self.explained():
            target.parent.mkdir(parents=True, exist_ok=True)
            new.parent.mkdir(parents=True, exist_ok=True)
            remove_older(new.parent, _STALE_SECONDS)
        try:
            with self.explained():
                yield new
                os.replace(new, target)
        finally:
            new.unlink(missing_ok=True)


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    try:
        return path.stat().st_size == size and sha256_of_file(path) == sha256
    except OSError:
        return False


def told(chunks: Iterable[bytes], tell: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the chunks, and tell the size of each."""
    for chunk in chunks:
        tell(len(chunk))
        yield chunk
