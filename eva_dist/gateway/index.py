"""What a store holds, in memory, for the gateway's routes and pages.

A store on S3 answers "which revisions are there" in many requests, a gateway is asked thousands of times a second.
So the answer is kept for `max_age_s` seconds, and is made again by one task however many ask for it. Where that takes
longer than a moment, they are answered with what was known before. A manifest is
read once and kept as long as something points to it; one that was pointed to stays known under its commit for an
hour, because a client that has begun to download a revision goes on by its commit.

What is damaged, or fails in a way that nobody thought of, is left out and logged; all else is served.
"""

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Self

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.store.name_rules import MAIN
from eva_dist.store.snapshot import Snapshot
from eva_dist.store.store import Revision, Store
from eva_dist.store.store_reader import REVISIONS

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_KEEP_S = 3600.0
"""How long a snapshot stays known under its commit after the last name has left it."""
_MOST_KEPT = 1000
_PATIENCE_S = 0.25
"""How long a request waits for a new view where there is one: enough for stores that answer soon."""
_OLD_S, _OLD_PATIENCE_S = 30.0, 3.0
"""From what age on a view is waited for longer, and how long; a slow store would have clients give up."""
_OUTAGE_S = 300.0
"""How long an old view answers while the store cannot be listed."""


@dataclass(frozen=True)
class Entry:
    """A revision and the artifact that it points to."""

    revision: Revision
    snapshot: Snapshot


@dataclass(frozen=True)
class Broken:
    """Why a revision is left out, and whether that may pass without anybody's doing."""

    reason: str
    passes: bool = False


@dataclass(frozen=True)
class _Manifest:
    """What was read of a manifest, in that version."""

    version: str
    said: Snapshot | Broken


@dataclass(frozen=True)
class StoreView:
    """All that a store held at one moment."""

    entries: tuple[Entry, ...] = ()
    broken: Mapping[tuple[str, str], Broken] = field(default_factory=dict)
    """What is wrong, by repo_id and revision, where a pointer or a manifest cannot be read."""
    by_repo: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    by_name: Mapping[tuple[str, str], Entry] = field(default_factory=dict)
    namespaces: frozenset[str] = frozenset()
    """Those that hold anything, or held it before."""

    @classmethod
    def of(
        cls, entries: Sequence[Entry], broken: Mapping[tuple[str, str], Broken], held: frozenset[str] = frozenset()
    ) -> Self:
        """Sort and look up by repo_id; `held`: namespaces of the view before."""
        ordered = tuple(sorted(entries, key=lambda entry: (entry.revision.repo_id, entry.revision.revision)))
        by_repo = {name: tuple(of_it) for name, of_it in groupby(ordered, key=lambda entry: entry.revision.repo_id)}
        by_name = {(entry.revision.repo_id, entry.revision.revision): entry for entry in ordered}
        namespaces = held.union(repo_id.partition("/")[0] for repo_id in (*by_repo, *(name for name, _ in broken)))
        return cls(ordered, broken, by_repo, by_name, namespaces)

    def find(self, repo_id: str, revision: str) -> Entry | None:
        """Return what a name, `main`, a commit or a fingerprint means in a repo."""
        if (repo_id, revision) in self.by_name:
            return self.by_name[repo_id, revision]
        entries = self.by_repo.get(repo_id, ())
        if revision == MAIN and entries:
            return last_moved(entries)
        matching = [e for e in entries if revision in (e.snapshot.commit, e.revision.fingerprint)]
        return last_moved(matching) if matching else None


def _name_of(key: str) -> tuple[str, str]:
    """Return the repo_id and the revision that a pointer's key has, whatever it looks like."""
    repo_id, _, revision = key.removeprefix(f"{REVISIONS}/").rpartition("/")
    return repo_id, revision.removesuffix(".json")


def last_moved(entries: Sequence[Entry]) -> Entry:
    """Return the entry whose name was moved last."""
    return max(entries, key=lambda entry: (entry.revision.moved, entry.revision.revision))


class Index:
    """The revisions of a store and their manifests; looked at again `max_age_s` seconds after the last look's end."""

    def __init__(self, store: Store, max_age_s: float = 2.0) -> None:
        self._store = store
        self._max_age_s = max_age_s
        self._view: StoreView | None = None
        self._read_at = 0.0  # when the view was right
        self._looked_at = 0.0  # when the last look ended, in whatever way
        self._began = 0.0  # when the look under way began
        self._refreshing: asyncio.Task[None] | None = None
        self._manifests: dict[str, _Manifest] = {}  # by fingerprint
        self._left: dict[tuple[str, str], tuple[float, Entry]] = {}

    async def entries(self) -> Sequence[Entry]:
        """Return all revisions whose manifest can be read, sorted by repo_id and revision.

        Raises:
            StoreError: the store cannot be listed, and has not been for minutes.
        """
        return (await self.view()).entries

    async def entry(self, repo_id: str, revision: str) -> Entry | None:
        """Return what a revision's name, `main`, a commit or a fingerprint means; None if nothing.

        Raises:
            StoreError: the store cannot be listed, and has not been for minutes.
        """
        return self.known(repo_id, revision) or self.find(await self.view(), repo_id, revision)

    def known(self, repo_id: str, revision: str) -> Entry | None:
        """Return what a commit means if that is known: it never means anything else later, so nobody looks again."""
        if self._view is None or not _COMMIT.match(revision):
            return None
        return self.find(self._view, repo_id, revision)

    def find(self, view: StoreView, repo_id: str, revision: str) -> Entry | None:
        """Return what `entry` does, in a view that the caller has."""
        return view.find(repo_id, revision) or self._recently_left(repo_id, revision)

    async def view(self) -> StoreView:
        """Return the store's content as it was a moment ago; older if the store is slow, or cannot be read.

        Raises:
            StoreError: it could not be read, and there is no view of the last minutes.
        """
        if self._view is None or time.monotonic() - self._looked_at > self._max_age_s:
            if self._refreshing is None or self._refreshing.done():
                self._began, self._refreshing = time.monotonic(), asyncio.create_task(self._look_again())
                self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())
            # Not awaited itself: one client that leaves must not end what others wait for.
            refreshing = self._refreshing
            await asyncio.wait([refreshing], timeout=self._patience_s())
            if refreshing.done():
                refreshing.result()
        assert self._view is not None
        return self._view

    def _patience_s(self) -> float | None:
        """Return how long to wait for the look under way; counted from its begin, so that no request waits twice."""
        if self._view is None:
            return None
        now = time.monotonic()
        patience_s = _PATIENCE_S if now - self._read_at < _OLD_S else _OLD_PATIENCE_S
        return max(0.0, self._began + patience_s - now)

    async def _look_again(self) -> None:
        began = time.monotonic()
        try:
            view = await asyncio.to_thread(self._read_store)
        except Exception as error:  # whatever it is, it must not take away what is known
            self._looked_at = time.monotonic()
            if self._view is None or self._looked_at - self._read_at > _OUTAGE_S:
                raise
            unexpected = None if isinstance(error, StoreError) else error
            log.warning("the store cannot be listed; what it held before is served: %s", error, exc_info=unexpected)
            return
        if self._view is not None:
            self._remember_left(self._view, view)
        self._view, self._read_at, self._looked_at = view, began, time.monotonic()

    def _read_store(self) -> StoreView:
        """Read the pointers, and the manifests that are new. Runs in a thread, one at a time."""
        revisions, odd = self._store.revisions_and_broken()
        versions = {fingerprint: found.version for fingerprint, found in self._store.fingerprints().items()}
        pointed = sorted({revision.fingerprint for revision in revisions})
        self._manifests = {name: self._read_manifest(name, versions.get(name, "")) for name in pointed}
        entries, broken = [], {_name_of(key): Broken("its pointer cannot be read") for key in odd}
        for one in revisions:
            found = self._manifests[one.fingerprint].said
            if isinstance(found, Broken):
                broken[one.repo_id, one.revision] = found
            else:
                entries.append(Entry(one, found))
        before = self._view or StoreView()
        for name, problem in broken.items():
            if before.broken.get(name) != problem:
                log.error("%s@%s is left out: %s", *name, problem.reason)
        return StoreView.of(entries, broken, before.namespaces)

    def _read_manifest(self, fingerprint: str, version: str) -> _Manifest:
        """Return what a manifest says, read again if its version is another, or if it could not be read."""
        before = self._manifests.get(fingerprint)
        said = before.said if before is not None else None
        if before is not None and before.version == version and not (isinstance(said, Broken) and said.passes):
            return before
        try:
            return _Manifest(version, self._store.snapshot(fingerprint))
        except (ArtifactNotFoundError, IntegrityError) as error:
            return _Manifest(version, Broken(str(error)))
        except Exception as error:  # one that cannot be read must not be every other's trouble
            unexpected = None if isinstance(error, StoreError) else error
            log.warning("the manifest of %s cannot be read: %s", fingerprint, error, exc_info=unexpected)
            if before is not None and isinstance(said, Snapshot):
                return before
            return _Manifest(version, Broken(str(error) or type(error).__name__, passes=isinstance(error, StoreError)))

    def _remember_left(self, old: StoreView, new: StoreView) -> None:
        """Remember for a while what no name points to any more."""
        now = time.monotonic()
        for entry in old.entries:
            repo_id, commit = entry.revision.repo_id, entry.snapshot.commit
            if new.find(repo_id, commit) is None:
                self._left[repo_id, commit] = now, entry
        fresh = [(key, left) for key, left in self._left.items() if now - left[0] < _KEEP_S]
        self._left = dict(fresh[-_MOST_KEPT:])

    def _recently_left(self, repo_id: str, commit: str) -> Entry | None:
        left = self._left.get((repo_id, commit))
        return left[1] if left is not None and time.monotonic() - left[0] < _KEEP_S else None
