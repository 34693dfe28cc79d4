"""What a person finds in a folder store: artifacts as plain folders, made from the store's objects.

    <root>/snapshots/<fingerprint>         a symlink to the folder with the artifact's files, which never changes
    <root>/<namespace>/<name>/<revision>   a symlink to a snapshot

The files are hard links to the store's blobs (copies, where the file system has none), so they cost nothing, and
copying such a folder with any tool copies an artifact. Nobody decides by them what the store holds: they can be
removed and come again with the next publish.
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
from eva_dist.store.files import replace_link, sync_tree
from eva_dist.store.names import INCOMING, OBJECTS, SNAPSHOTS
from eva_dist.store.objects import scratch_name
from eva_dist.store.snapshot import MANIFEST_FILE, Revision, Snapshot

log = logging.getLogger(__name__)

_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


class View:
    """The folders of a folder store, below `root`."""

    def __init__(self, root: Path, blob: Callable[[str], Path]) -> None:
        """Touch nothing yet; `blob` gives the path of the blob with a sha256."""
        self._root = root
        self._blob = blob

    def revision(self, repo_id: str, revision: str) -> Path:
        """Return where a revision is seen."""
        return self._root / repo_id / revision

    def snapshot(self, fingerprint: str) -> Path:
        """Return where a snapshot is seen."""
        return self._root / SNAPSHOTS / fingerprint

    def incoming(self) -> Path:
        """Return a new path for what is being made; nobody looks there."""
        (self._root / INCOMING).mkdir(parents=True, exist_ok=True)
        return self._root / INCOMING / scratch_name()

    def refuse_foreign(self, repo_id: str, revision: str, fingerprint: str) -> None:
        """Raise unless both links are free or links: what we did not make, we do not replace."""
        for link in (self.revision(repo_id, revision), self.snapshot(fingerprint)):
            if os.path.lexists(link) and not link.is_symlink():
                raise StoreError(
                    f"store.url={self._root}: {link} is not a symlink, so not of this store (earlier versions kept "
                    "artifacts there); move it away, or choose another artifact.repo_id, artifact.revision or store.url"
                )

    def show(self, snapshot: Snapshot, fingerprint: str, renew: bool = False) -> Path:
        """Have `snapshots/<fingerprint>` lead to a folder with these files, atomically; return it.

        `renew` makes a new folder even if the one that is there looks right.
        """
        link = self.snapshot(fingerprint)
        if renew or not self._shows(link, snapshot):
            before = os.path.realpath(link)
            tree = self._make_tree(snapshot)
            replace_link(link, os.path.relpath(tree, link.parent), self.incoming())
            with suppress(OSError):
                os.utime(before)  # its readers have as long as if it had just been made
        return link

    def point(self, fingerprint: str, repo_id: str, revision: str) -> Path:
        """Have `<repo_id>/<revision>` lead to a snapshot, atomically; return it."""
        link = self.revision(repo_id, revision)
        target = os.path.relpath(self.snapshot(fingerprint), link.parent)
        if not (link.is_symlink() and os.readlink(link) == target):
            replace_link(link, target, self.incoming())
        return link

    def is_shown(self, snapshot: Snapshot, one: Revision) -> bool:
        """Tell whether a revision's folder is there with the files of its snapshot, each in its size."""
        return self._shows(self.revision(one.repo_id, one.revision), snapshot)

    def unpoint(self, repo_id: str, revision: str) -> None:
        """Take a revision's link away, and folders that are empty then."""
        link = self.revision(repo_id, revision)
        if link.is_symlink():
            link.unlink(missing_ok=True)
        for folder in (link.parent, link.parent.parent):
            with suppress(OSError):  # others' revisions are there
                folder.rmdir()

    def stale(self, fingerprints: set[str], revisions: set[tuple[str, str]], older_than_s: float) -> list[Path]:
        """Return what nothing of the store stands behind, and is so old.

        These are our own links, folders that no snapshot leads to, and what publishers that were killed have left;
        links that lead elsewhere are somebody else's.
        """
        snapshots = [p for p in self._root.glob(f"{SNAPSHOTS}/*") if _leads(p, rf"\.\./{OBJECTS}/trees/[^/]+")]
        shown = {os.path.realpath(path) for path in snapshots if path.name in fingerprints}
        names = [p for p in self._root.glob("[!.]*/*/*") if _leads(p, rf"\.\./\.\./{SNAPSHOTS}/[0-9a-f]{{8,128}}")]
        left = [
            *(path for path in snapshots if path.name not in fingerprints),
            *(path for path in names if (f"{path.parts[-3]}/{path.parts[-2]}", path.name) not in revisions),
            *(path for path in self._trees.glob("*") if os.path.realpath(path) not in shown),
            *(path for path in (self._root / OBJECTS).rglob("*#[0-9]*") if path.is_file()),
            *(self._root / INCOMING).glob("*"),
        ]
        return [path for path in left if _age_s(path) >= older_than_s]

    @property
    def _trees(self) -> Path:
        return self._root / OBJECTS / "trees"

    def _shows(self, link: Path, snapshot: Snapshot) -> bool:
        try:
            whole = (link / MANIFEST_FILE).read_bytes() == snapshot.content
            return whole and all(self._is_file(link / entry.path, entry.size) for entry in snapshot.files.values())
        except OSError:
            return False

    @staticmethod
    def _is_file(path: Path, size: int) -> bool:
        return path.is_file() and path.stat().st_size == size

    def _make_tree(self, snapshot: Snapshot) -> Path:
        """Build a folder of the files aside, and move it to a name of its own."""
        folder = self.incoming()
        try:
            folder.mkdir()  # not tempfile.mkdtemp: its mode 0700 would shut the team out
            for entry in snapshot.files.values():
                target = folder / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if entry.path == MANIFEST_FILE:
                    target.write_bytes(snapshot.content)
                else:
                    _link_or_copy(self._blob(entry.sha256), target)
            sync_tree(folder)
            self._trees.mkdir(parents=True, exist_ok=True)
            tree = self._trees / f"{snapshot.commit[:12]}-{scratch_name()[:8]}"
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


def _leads(link: Path, pattern: str) -> bool:
    """Tell whether a path is a link whose target is spelled so."""
    return link.is_symlink() and re.fullmatch(pattern, os.readlink(link)) is not None


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
