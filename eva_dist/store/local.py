"""A store in a folder, laid out so that a person can read it.

    <root>/snapshots/<fingerprint>/...             the files of one artifact, never changed in place
    <root>/<namespace>/<name>/<revision>           a relative symlink to a snapshot
    <root>/.incoming/<random>                      what is being written; nobody looks here
    <root>/.checkpoints/<fingerprint>/...          passes under way (checkpoint.py); gone when they are published

Everything becomes visible by one rename in one file system, so a reader sees an artifact
whole or not at all, wherever a publisher is killed. A crash between a snapshot's rename and
its symlink leaves a complete snapshot, which the next run finds by its fingerprint. Only
`overwrite` has an instant between two renames when a snapshot is away.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eva_dist.errors import ArtifactNotFoundError, StoreError
from eva_dist.store.files import complete_manifest, remove_older, rename_if_free, replace_link, sync, sync_tree
from eva_dist.store.names import CHECKPOINTS, INCOMING, SNAPSHOTS, check_fingerprint, check_names, root_folder

log = logging.getLogger(__name__)

_STALE_SECONDS = 24 * 3600
_RACES = 10
"""How often a snapshot may come or go under our hands before we give up: each time, someone else got on."""


@dataclass(frozen=True)
class Published:
    """An artifact in the store; `url` and `folder` are the revision's where one was asked for, else the snapshot's."""

    url: str
    folder: Path
    fingerprint: str
    manifest: dict[str, Any]


class LocalStore:
    """Artifacts in the folder `url`, a `file:///` URL or a path."""

    def __init__(self, url: str) -> None:
        """Touch nothing yet; `StoreError` if `url` names no folder."""
        self.url = url
        self.root = root_folder(url)

    def revision_folder(self, repo_id: str, revision: str) -> Path:
        """Return where a revision is, or will be; `StoreError` for names that leave the store."""
        check_names(repo_id, revision)
        return self.root / repo_id / revision

    def fingerprint_of(self, repo_id: str, revision: str) -> str | None:
        """Return the fingerprint that a revision points to now, None if there is no such revision."""
        link = self.revision_folder(repo_id, revision)
        return Path(os.readlink(link)).name if link.is_symlink() else None

    def snapshot_url(self, fingerprint: str) -> str:
        """Return the `file://` URL that stays an artifact's own, wherever its revisions move."""
        return self._snapshot(fingerprint).as_uri()

    @property
    def checkpoints(self) -> Path:
        """Where passes under way keep their checkpoints."""
        return self.root / CHECKPOINTS

    def check_writable(self) -> None:
        """Do in small what `publish` does, before any work; creates the root and leaves nothing in it.

        Raises:
            StoreError: the folder cannot be created or written, or takes no symlinks.
        """
        probe = self.root / f".probe-{secrets.token_hex(8)}"
        with self._explained("cannot be written"):
            try:
                (probe / "from").mkdir(parents=True)
                (probe / "from" / "file").write_bytes(b"eva_dist")
                sync_tree(probe)
                os.rename(probe / "from", probe / "to")
                os.symlink("to", probe / "link.new")
                os.replace(probe / "link.new", probe / "link")
            finally:
                shutil.rmtree(probe, ignore_errors=True)

    def find(self, fingerprint: str) -> Published | None:
        """Return the snapshot with that fingerprint if it is complete: manifest readable, every file of its size."""
        folder = self._snapshot(fingerprint)
        manifest = complete_manifest(folder)
        return None if manifest is None else Published(folder.as_uri(), folder, fingerprint, manifest)

    def publish(
        self,
        fingerprint: str,
        repo_id: str,
        revision: str,
        build: Callable[[Path], dict[str, Any]],
        overwrite: bool = False,
    ) -> Published:
        """Publish what `build` writes into an empty folder, and point the revision to it.

        A complete snapshot with this fingerprint is used as it is, without a build, unless
        `overwrite`. Whatever `build` raises passes through, but for `OSError`.

        Raises:
            StoreError: a name leaves the store, or the file system refused; nothing half-written is left.
        """
        link = self.revision_folder(repo_id, revision)
        with self._explained("cannot take the artifact"):
            self._refuse_foreign(link)
            found = None if overwrite else self.find(fingerprint)
            manifest = found.manifest if found else self._add_snapshot(fingerprint, build, overwrite)
        return self._link(fingerprint, manifest, repo_id, revision)

    def point(self, fingerprint: str, repo_id: str, revision: str) -> Published:
        """Point a revision to the snapshot with that fingerprint, atomically.

        Raises:
            ArtifactNotFoundError: there is no such snapshot.
            StoreError: a name leaves the store, or the file system refused.
        """
        check_names(repo_id, revision)
        found = self.find(fingerprint)
        if found is None:
            raise ArtifactNotFoundError(
                f"store.url={self.url} holds no complete artifact with fingerprint {fingerprint}; publish it first"
            )
        return self._link(fingerprint, found.manifest, repo_id, revision)

    def _add_snapshot(
        self, fingerprint: str, build: Callable[[Path], dict[str, Any]], overwrite: bool
    ) -> dict[str, Any]:
        """Build aside and move in; return the manifest of the snapshot that stands."""
        snapshot = self._snapshot(fingerprint)
        # What publishers that were killed have left; one that lives is done long before.
        remove_older(self.root / INCOMING, _STALE_SECONDS)
        folder = self._incoming_path()
        try:
            folder.mkdir()  # not tempfile.mkdtemp: its mode 0700 would shut the team out of the snapshot
            build(folder)
            manifest = complete_manifest(folder)
            assert manifest is not None, "build writes a manifest.json that fits the files beside it"
            sync_tree(folder)
            snapshot.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_RACES):
                if rename_if_free(folder, snapshot) or self._swap(folder, snapshot, overwrite):
                    sync(snapshot.parent)
                    return complete_manifest(snapshot) or manifest
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"store.url={self.url}: others keep replacing {snapshot}; run again when they are done")

    def _swap(self, folder: Path, snapshot: Path, overwrite: bool) -> bool:
        """Settle with the snapshot that is there: let a complete one stand, unless `overwrite`, or take its place.

        Returns False if another publisher was quicker, so that the caller looks again.
        """
        if not overwrite and complete_manifest(snapshot) is not None:
            return True
        aside = self._incoming_path()
        try:
            os.rename(snapshot, aside)
        except FileNotFoundError:
            return False
        try:
            placed = rename_if_free(folder, snapshot)
        except BaseException:
            with suppress(OSError):
                os.rename(aside, snapshot)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return placed

    def _link(self, fingerprint: str, manifest: dict[str, Any], repo_id: str, revision: str) -> Published:
        link = self.revision_folder(repo_id, revision)
        with self._explained(f"cannot point {repo_id}/{revision} to {fingerprint}"):
            self._refuse_foreign(link)
            before = self.fingerprint_of(repo_id, revision)
            if before != fingerprint:
                replace_link(link, os.path.relpath(self._snapshot(fingerprint), link.parent), self._incoming_path())
        if before not in (None, fingerprint):
            log.info("%s/%s moved from %s to %s in %s", repo_id, revision, before, fingerprint, self.url)
        return Published(link.as_uri(), link, fingerprint, manifest)

    def _snapshot(self, fingerprint: str) -> Path:
        check_fingerprint(fingerprint)
        return self.root / SNAPSHOTS / fingerprint

    def _incoming_path(self) -> Path:
        (self.root / INCOMING).mkdir(parents=True, exist_ok=True)
        return self.root / INCOMING / secrets.token_hex(8)

    def _refuse_foreign(self, link: Path) -> None:
        """Raise unless the revision is free or a symlink: what we did not make, we do not replace."""
        try:
            link.lstat()
        except FileNotFoundError:
            return
        if not link.is_symlink():
            raise StoreError(
                f"store.url={self.url}: {link} is not a symlink, so no revision of this store; move it away, or choose "
                "another artifact.repo_id or artifact.revision"
            )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn an `OSError` into a `StoreError` that names the store, the reason and the remedy."""
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise StoreError(
                f"store.url={self.url} {what}: {error.strerror or error}{where}; "
                "make room or grant the rights there, or choose another folder with store.url"
            ) from error
