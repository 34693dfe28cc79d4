"""A store of artifacts: publish them, name them, take names away. `store_reader.py` finds and reads them.

    objects/blobs/<aa>/<sha256>                            every file of every artifact, once
    objects/manifests/<fingerprint>.json                   `manifest.json` of an artifact: what commits it
    objects/revisions/<namespace>/<name>/<revision>.json   which artifact a name points to

A publish puts the blobs, then the manifest, only if there is none yet, then the revision. In that order a reader finds
an artifact whole or not at all, wherever a publisher is killed; and of two that publish the same fingerprint, one wins
and the other uses what it finds. The same objects lie in a folder, in memory, or in a bucket; a folder store also
shows them as plain folders (`folder_view.py`).
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.hashing import fingerprint as fingerprint_of
from eva_dist.store.durable_files import remove_older, sync, sync_tree
from eva_dist.store.name_rules import INCOMING, OBJECTS, check_fingerprint, check_names
from eva_dist.store.objects import StoredObject, scratch_name
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry, Revision, Snapshot, folder_snapshot, sha256_of
from eva_dist.store.store_reader import Published, StoreReader, blob_key, manifest_key, revision_key

__all__ = ["GRACE", "Published", "Revision", "Store"]

log = logging.getLogger(__name__)

GRACE = timedelta(hours=24)
"""How long what nothing names is left alone: someone may be about to name it. A publish takes less than half of it."""

_RACES = 10
"""How often a name may move under our hands before we give up."""


def _is_own_fingerprint(snapshot: Snapshot) -> bool:
    """Tell whether the fingerprint is the sha256 of the `decisive` settings in the manifest, if it has any."""
    decisive = snapshot.manifest.get("decisive")
    try:
        return decisive is None or fingerprint_of(decisive) == snapshot.fingerprint
    except (TypeError, ValueError, RecursionError):
        return False


class Store(StoreReader):
    """A store that can be written too; `StoreReader` says what it holds and how it is read."""

    def check_writable(self) -> None:
        """Try each kind of write that `publish` needs, on a few bytes, before hours of work depend on it.

        Raises:
            StoreError: it cannot be written, refuses create-only writes, or a folder that takes no symlinks.
        """
        key = f"{OBJECTS}/.probe-{scratch_name()}"
        try:
            if not self._objects.put(key, b"eva_dist", create=True) or self._objects.put(key, b"again", create=True):
                raise StoreError(
                    f"store.url={self.url} does not refuse to write what is there (create-only, `If-None-Match: *`): "
                    "two publishers could mix; use a server that does"
                )
        finally:
            try:
                self._objects.delete(key)
            except StoreError as error:  # publishing deletes nothing: a role that may only add is enough
                log.warning("a probe of a few bytes stays: %s", error)
        if self._folder_view is not None:
            with self._translate_os_errors("cannot be written"):
                probe = self._folder_view.incoming()
                try:
                    (probe / "from").mkdir(parents=True)
                    (probe / "from" / "file").write_bytes(b"eva_dist")
                    sync_tree(probe)
                    os.rename(probe / "from", probe / "to")
                    os.symlink("to", probe / "link.new")
                    os.replace(probe / "link.new", probe / "link")
                finally:
                    shutil.rmtree(probe, ignore_errors=True)

    def publish(
        self,
        fingerprint: str,
        repo_id: str,
        revision: str,
        build: Callable[[Path], dict[str, Any]],
        overwrite: bool = False,
    ) -> Published:
        """Publish what `build` writes into an empty folder, and point the revision to it.

        A complete artifact with this fingerprint is used as it is, without a build, unless
        `overwrite`. Whatever `build` raises passes through, but for `OSError`.

        Raises:
            StoreError: a name leaves the store, or the store refused; nothing half-written is seen.
        """
        check_names(repo_id, revision)
        check_fingerprint(fingerprint)
        self._refuse_foreign_links(repo_id, revision, fingerprint)
        if not overwrite and self._whole_snapshot(fingerprint) is not None:
            with suppress(ArtifactNotFoundError):  # `gc` took it after our look: build it then
                return self.point(fingerprint, repo_id, revision)
        with self._translate_os_errors("cannot take the artifact"), self._build_folder() as folder:
            build(folder)
            self._commit_folder(fingerprint, folder, overwrite)
        return self.point(fingerprint, repo_id, revision)

    def publish_folder(self, folder: Path, repo_id: str, revision: str, overwrite: bool = False) -> Published:
        """Publish an artifact that lies in a folder, verified first.

        Raises:
            ArtifactNotFoundError: there is none in it.
            IntegrityError: a file is missing or is not what its manifest says; the fingerprint is not that of what the
                manifest says decides it; or the store has other tensors under it.
            StoreError: see `publish`.
        """
        check_names(repo_id, revision)
        snapshot = folder_snapshot(folder)
        # A folder may come from anywhere: every file is hashed before the first byte goes into the store.
        for entry in snapshot.files.values():
            if not (path := folder / entry.path).is_file():
                raise IntegrityError(f"{path} is missing though the manifest lists it; copy the artifact again")
            self._refuse_other_bytes(entry, sha256_of(path), path.stat().st_size, str(path))
        fingerprint = snapshot.fingerprint
        check_fingerprint(fingerprint)
        if not _is_own_fingerprint(snapshot):
            raise IntegrityError(
                f"{folder}: fingerprint {fingerprint} is not that of `decisive` in its manifest: runs that ask for it "
                "would get another artifact; copy the artifact again"
            )
        self._refuse_foreign_links(repo_id, revision, fingerprint)
        standing = None if overwrite else self._whole_snapshot(fingerprint)
        if standing is None:
            with self._translate_os_errors("cannot take the artifact"):
                self._commit_folder(fingerprint, folder, overwrite)
        else:
            self._refuse_other_tensors(snapshot, standing)
        return self.point(fingerprint, repo_id, revision)

    def point(self, fingerprint: str, repo_id: str, revision: str) -> Published:
        """Point a revision to the artifact with that fingerprint, atomically.

        Raises:
            ArtifactNotFoundError: there is no such artifact, or it is not complete.
            StoreError: a name leaves the store, or the store refused.
        """
        check_names(repo_id, revision)
        snapshot = self._whole_or_raise(fingerprint)
        self._refuse_foreign_links(repo_id, revision, fingerprint)
        before = self.fingerprint_of(repo_id, revision)
        with self._translate_os_errors(f"cannot point {repo_id}/{revision} to {fingerprint}"):
            if before != fingerprint:
                self._renew_manifest(fingerprint)
            # The folder before the pointer: who follows the name in a folder store finds the files there.
            if self._folder_view is not None:
                self._folder_view.show(snapshot, fingerprint)
            if before != fingerprint:
                content = json.dumps({"fingerprint": fingerprint}) + "\n"
                self._objects.put(key := revision_key(repo_id, revision), content.encode())
                self._sync_object(key)
            self._show_revision(repo_id, revision)
        if before not in (None, fingerprint):
            # The artifact that lost the name ages from now on: its readers have a day before `gc` may remove it.
            self._objects.touch(manifest_key(str(before)))
            log.info("%s/%s moved from %s to %s in %s", repo_id, revision, before, fingerprint, self.url)
        return self._published_artifact(self._whole_or_raise(fingerprint), fingerprint, (repo_id, revision))

    def remove(self, repo_id: str, revision: str) -> None:
        """Remove a revision; the artifact stays until `gc` finds that nothing has named it for a while.

        Raises:
            ArtifactNotFoundError: there is no such revision; the message names what there is.
        """
        key = revision_key(repo_id, revision)
        before = self.fingerprint_of(repo_id, revision)
        if before is None and self._objects.head(key) is None:
            names = [one.revision for one in self.revisions(repo_id)]
            raise ArtifactNotFoundError(
                f"store.url={self.url} has no {self._describe_unknown(repo_id, revision, names)}"
            )
        if before is not None:  # its grace begins now: who reads it by this name has a day to finish
            self._objects.touch(manifest_key(before))
        self._objects.delete(key)
        self._show_revision(repo_id, revision)

    def _show_revision(self, repo_id: str, revision: str) -> None:
        """Make a folder store's link agree with the revision's pointer, which alone decides.

        Another publisher may move the pointer while we set the link, so look again until both agree.
        """
        if self._folder_view is None:
            return
        for _ in range(_RACES):
            points_to = self.fingerprint_of(repo_id, revision)
            if points_to is None:
                self._folder_view.unpoint(repo_id, revision)
            else:
                self._folder_view.point(points_to, repo_id, revision)
            if self.fingerprint_of(repo_id, revision) == points_to:
                return
        raise StoreError(f"store.url={self.url}: others keep moving {repo_id}@{revision}; try again when they are done")

    def _renew_manifest(self, fingerprint: str) -> None:
        """Reset the age of a manifest that `gc` might otherwise remove before a name points to it."""
        found = self._objects.head(manifest_key(fingerprint))
        if found is not None and datetime.now(UTC) - found.modified > GRACE / 2:
            self._objects.touch(found.key)

    def _refuse_other_tensors(self, given: Snapshot, standing: Snapshot) -> None:
        """Raise `IntegrityError` if the store has other tensors under this fingerprint: runs would get those."""
        for path, entry in given.files.items():
            there = standing.files.get(path)
            if path.endswith(".safetensors") and (there is None or there.sha256 != entry.sha256):
                raise IntegrityError(
                    f"store.url={self.url} has another {path} under fingerprint {given.fingerprint}: sha256 "
                    f"{there.sha256 if there else 'none'}, here {entry.sha256}; if this one is right, replace it "
                    "(overwrite, eva-dist push --force)"
                )

    def _whole_or_raise(self, fingerprint: str) -> Snapshot:
        snapshot = self._whole_snapshot(fingerprint)
        if snapshot is None:
            raise ArtifactNotFoundError(
                f"store.url={self.url} holds no complete artifact with fingerprint {fingerprint}; publish it first"
            )
        return snapshot

    def view_problem(self, one: Revision) -> str | None:
        """Return what is wrong with the folder that shows a revision; None: nothing, or the store shows no folders."""
        if self._folder_view is None or self._folder_view.is_shown(self.snapshot(one.fingerprint), one):
            return None
        return "its folder is not there, or not as its manifest says; publish the artifact again to renew it"

    def objects_below(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the store's objects below a key; for `verify.py` and `gc.py`."""
        return self._objects.list(prefix)

    def stale_paths(self, fingerprints: set[str], known: list[Revision], older_than: timedelta) -> tuple[Path, ...]:
        """Return the paths in a folder store that belong to nothing it holds; for `verify.py` and `gc.py`."""
        if self._folder_view is None:
            return ()
        names = {(one.repo_id, one.revision) for one in known}
        return tuple(self._folder_view.stale(fingerprints, names, older_than.total_seconds()))

    def is_same(self, found: StoredObject) -> bool:
        """Tell whether an object is still as it was listed; for `verify.py` and `gc.py`."""
        return self._objects.head(found.key) == found

    def delete_object(self, key: str) -> None:
        """Remove an object; for `verify.py` and `gc.py`."""
        self._objects.delete(key)

    def _commit_folder(self, fingerprint: str, folder: Path, overwrite: bool) -> None:
        """Put the files in `folder` into the store, then the manifest that makes an artifact of them.

        An artifact that others have committed meanwhile stands, unless `overwrite`, or it is not whole.
        """
        snapshot = folder_snapshot(folder, fingerprint)
        entries = [entry for entry in snapshot.files.values() if entry.path != MANIFEST_FILE]
        for entry in entries:
            assert (folder / entry.path).stat().st_size == entry.size, "the manifest fits the files beside it"
            self._put_blob(entry, folder / entry.path, overwrite)
        for entry in entries:  # all on the disk before the manifest promises them
            self._sync_object(blob_key(entry.sha256))
        key = manifest_key(fingerprint)
        # Create-only: of two publishers one wins here, and the other looks at what stands.
        created = self._objects.put(key, snapshot.content, create=True)
        replaced: list[FileEntry] = []
        if not created:
            standing = self._whole_snapshot(fingerprint)
            if not overwrite and standing is not None:
                return
            replaced = list(standing.files.values()) if standing is not None else []
            self._objects.put(key, snapshot.content)
        self._sync_object(key)
        # A blob that was there already was not put; `gc` may have removed it before our manifest named it.
        for entry in self._missing_files(snapshot):
            self._put_blob(entry, folder / entry.path, True)
        if self._folder_view is not None and overwrite:
            self._folder_view.show(snapshot, fingerprint, renew=True)
            for entry in replaced:  # who reads them has as long as if a name had left them now
                self._objects.touch(blob_key(entry.sha256))

    def _put_blob(self, entry: FileEntry, path: Path, always: bool) -> None:
        """Put a file's bytes unless they are there; if they are so old that `gc` might remove them, put them again."""
        found = self.stat(entry)
        if always or found is None or found.size != entry.size or datetime.now(UTC) - found.modified > GRACE / 2:
            self._objects.put_file(blob_key(entry.sha256), path)

    def _sync_object(self, key: str) -> None:
        """Flush an object of a folder store to the disk before anything that depends on it is written.

        Buckets answer a write only when it will last.
        """
        if self.root is not None:
            path = self._objects.path(key)
            sync(path)
            sync(path.parent)

    def _refuse_foreign_links(self, repo_id: str, revision: str, fingerprint: str) -> None:
        if self._folder_view is not None:
            self._folder_view.refuse_foreign(repo_id, revision, fingerprint)

    @contextmanager
    def _build_folder(self) -> Iterator[Path]:
        """Give an empty folder to build an artifact in: inside a folder store, else where temporary files go."""
        if self._folder_view is None:
            with tempfile.TemporaryDirectory(prefix="eva_dist-") as name:
                yield Path(name)
            return
        assert self.root is not None
        # What publishers that were killed have left; one that lives is done long before.
        remove_older(self.root / INCOMING, GRACE.total_seconds())
        folder = self._folder_view.incoming()
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
