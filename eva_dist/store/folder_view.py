"""The folders that a person finds in a folder store: artifacts as plain folders, made from the store's objects.

    <root>/snapshots/<fingerprint>         a symlink to the folder with the artifact's files, which never changes
    <root>/<namespace>/<name>/<revision>   a symlink to a snapshot

The files are hard links to the store's blobs (copies, where the file system has none), so they take no space, and
copying such a folder with any tool copies an artifact. They are only shown, never read to decide what the store
holds: they can be removed, and the next publish makes them again.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from eva_dist.errors import StoreError
from eva_dist.store.durable_files import replace_link, sync_tree
from eva_dist.store.name_rules import FINGERPRINT_PATTERN, INCOMING, OBJECTS, SNAPSHOTS
from eva_dist.store.objects import scratch_name
from eva_dist.store.snapshot import MANIFEST_FILE, Revision, Snapshot, lacking

log = logging.getLogger(__name__)

_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


class FolderView:
    """The folders of a folder store, below `root`."""

    def __init__(self, root: Path, blob_path: Callable[[str], Path]) -> None:
        """Touch nothing yet; `blob_path` returns where the blob with a given sha256 lies."""
        self._root = root
        self._blob_path = blob_path

    def revision(self, repo_id: str, revision: str) -> Path:
        """Return the path at which a revision is shown."""
        return self._root / repo_id / revision

    def snapshot(self, fingerprint: str) -> Path:
        """Return the path at which a snapshot is shown."""
        return self._root / SNAPSHOTS / fingerprint

    def incoming(self) -> Path:
        """Return a fresh path to build something at, where no reader looks."""
        (self._root / INCOMING).mkdir(parents=True, exist_ok=True)
        return self._root / INCOMING / scratch_name()

    def refuse_foreign(self, repo_id: str, revision: str, fingerprint: str) -> None:
        """Raise `StoreError` if something that is no symlink stands in a link's place: it is not ours to replace."""
        for link in (self.revision(repo_id, revision), self.snapshot(fingerprint)):
            if os.path.lexists(link) and not link.is_symlink():
                raise StoreError(
                    f"store.url={self._root}: {link} is not a symlink, so not of this store (earlier versions kept "
                    "artifacts there); move it away, or choose another artifact.repo_id, artifact.revision or store.url"
                )

    def show(self, snapshot: Snapshot, fingerprint: str, renew: bool = False) -> Path:
        """Point `snapshots/<fingerprint>` to a folder with these files, atomically; return the link.

        `renew` builds a new folder even if the one that is there looks right: its files may have been swapped.
        """
        link = self.snapshot(fingerprint)
        if renew or not self._has_all_files(link, snapshot):
            before = os.path.realpath(link)
            tree = self._make_tree(snapshot)
            replace_link(link, os.path.relpath(tree, link.parent), self.incoming())
            with suppress(OSError):
                os.utime(before)  # who reads the old folder has as long to finish as if it had just been made
        return link

    def point(self, fingerprint: str, repo_id: str, revision: str) -> Path:
        """Point `<repo_id>/<revision>` to a snapshot, atomically; return the link."""
        link = self.revision(repo_id, revision)
        target = os.path.relpath(self.snapshot(fingerprint), link.parent)
        if not (link.is_symlink() and os.readlink(link) == target):
            replace_link(link, target, self.incoming())
        return link

    def is_shown(self, snapshot: Snapshot, one: Revision) -> bool:
        """Tell whether a revision's folder is there with the files of its snapshot, each in its size."""
        return self._has_all_files(self.revision(one.repo_id, one.revision), snapshot)

    def unpoint(self, repo_id: str, revision: str) -> None:
        """Remove a revision's link, and the folders above it that are empty then."""
        link = self.revision(repo_id, revision)
        if link.is_symlink():
            link.unlink(missing_ok=True)
        for folder in (link.parent, link.parent.parent):
            with suppress(OSError):  # others' revisions are there
                folder.rmdir()

    def stale(self, fingerprints: set[str], revisions: set[tuple[str, str]], older_than_s: float) -> list[Path]:
        """Return the paths that are older than that and belong to nothing that the store holds.

        These are our own links, folders that no snapshot leads to, and what publishers that were killed have left;
        links that lead elsewhere are somebody else's and stay.
        """
        snapshots = [p for p in self._root.glob(f"{SNAPSHOTS}/*") if _is_link_to(p, rf"\.\./{OBJECTS}/trees/[^/]+")]
        shown = {os.path.realpath(path) for path in snapshots if path.name in fingerprints}
        names = [
            p for p in self._root.glob("[!.]*/*/*") if _is_link_to(p, rf"\.\./\.\./{SNAPSHOTS}/{FINGERPRINT_PATTERN}")
        ]
        left = [
            *(path for path in snapshots if path.name not in fingerprints),
            *(path for path in names if (f"{path.parts[-3]}/{path.parts[-2]}", path.name) not in revisions),
            *(path for path in self._trees_folder.glob("*") if os.path.realpath(path) not in shown),
            *(path for path in (self._root / OBJECTS).rglob("*#[0-9]*") if path.is_file()),
            *(self._root / INCOMING).glob("*"),
        ]
        return [path for path in left if _age_seconds(path) >= older_than_s]

    @property
    def _trees_folder(self) -> Path:
        return self._root / OBJECTS / "trees"

    def _has_all_files(self, link: Path, snapshot: Snapshot) -> bool:
        try:
            return (link / MANIFEST_FILE).read_bytes() == snapshot.content and not lacking(link, snapshot)
        except OSError:
            return False

    def _make_tree(self, snapshot: Snapshot) -> Path:
        """Build a folder of the files where no reader looks, and rename it to a name of its own."""
        folder = self.incoming()
        try:
            folder.mkdir()  # not tempfile.mkdtemp: its mode 0700 would shut the team out
            for entry in snapshot.files.values():
                target = folder / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if entry.path == MANIFEST_FILE:
                    target.write_bytes(snapshot.content)
                else:
                    _link_or_copy(self._blob_path(entry.sha256), target)
            sync_tree(folder)  # before the rename: after a power cut, a name must not lead to empty files
            self._trees_folder.mkdir(parents=True, exist_ok=True)
            tree = self._trees_folder / f"{snapshot.commit[:12]}-{scratch_name()[:8]}"
            os.rename(folder, tree)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return tree


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def _is_link_to(link: Path, pattern: str) -> bool:
    """Tell whether a path is a symlink whose target, as it is written, matches a pattern."""
    return link.is_symlink() and re.fullmatch(pattern, os.readlink(link)) is not None


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
