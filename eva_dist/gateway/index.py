"""What a store holds, in memory, for the gateway's routes and pages.

A store on S3 answers "which revisions are there" in many requests, a gateway is asked thousands of times a second.
So the answer is kept for `max_age_s` seconds, and is made again by one task however many wait for it. A manifest is
read once and kept as long as something points to it; one that was pointed to stays known under its commit for an
hour, because a client that has begun to download a revision goes on by its commit.
"""

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from eva_dist.errors import ArtifactNotFoundError, IntegrityError, StoreError
from eva_dist.store.reader import MAIN
from eva_dist.store.snapshot import Snapshot
from eva_dist.store.store import Revision, Store

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_KEEP_S = 3600.0
"""How long a snapshot stays known under its commit after the last name has left it."""
_MOST_KEPT = 1000
_PATIENCE_S = 3.0
"""How long a request waits for a new view where there is an old one; a slow store would have clients give up."""
_OUTAGE_S = 300.0
"""How long an old view answers while the store cannot be listed."""


@dataclass(frozen=True)
class Entry:
    """A revision and the artifact that it points to."""

    revision: Revision
    snapshot: Snapshot


@dataclass(frozen=True)
class View:
    """All that a store held at one moment."""

    entries: tuple[Entry, ...] = ()
    broken: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """What is wrong, by repo_id and revision, where a manifest cannot be read."""
    by_repo: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    by_name: Mapping[tuple[str, str], Entry] = field(default_factory=dict)
    namespaces: frozenset[str] = frozenset()
    """Those that hold anything, or held it before."""

    @classmethod
    def of(
        cls, entries: Sequence[Entry], broken: Mapping[tuple[str, str], str], held: frozenset[str] = frozenset()
    ) -> Self:
        """Sort and look up by repo_id; `held`: namespaces of the view before."""
        ordered = tuple(sorted(entries, key=lambda entry: (entry.revision.repo_id, entry.revision.revision)))
        by_repo: dict[str, list[Entry]] = {}
        for entry in ordered:
            by_repo.setdefault(entry.revision.repo_id, []).append(entry)
        by_name = {(entry.revision.repo_id, entry.revision.revision): entry for entry in ordered}
        namespaces = held.union(repo_id.partition("/")[0] for repo_id in (*by_repo, *(name for name, _ in broken)))
        repos = {repo_id: tuple(of_it) for repo_id, of_it in by_repo.items()}
        return cls(ordered, broken, repos, by_name, namespaces)

    def find(self, repo_id: str, revision: str) -> Entry | None:
        """Return what a name, `main`, a commit or a fingerprint means in a repo."""
        if (repo_id, revision) in self.by_name:
            return self.by_name[repo_id, revision]
        entries = self.by_repo.get(repo_id, ())
        if revision == MAIN and entries:
            return last_moved(entries)
        matching = [e for e in entries if revision in (e.snapshot.commit, e.revision.fingerprint)]
        return last_moved(matching) if matching else None


def last_moved(entries: Sequence[Entry]) -> Entry:
    """Return the entry whose name was moved last."""
    return max(entries, key=lambda entry: (entry.revision.moved, entry.revision.revision))


class Index:
    """The revisions of a store and their manifests, as they were at most `max_age_s` seconds ago."""

    def __init__(self, store: Store, max_age_s: float = 2.0) -> None:
        self._store = store
        self._max_age_s = max_age_s
        self._view: View | None = None
        self._read_at = 0.0  # when the view was right
        self._tried_at = 0.0  # when we last asked
        self._refreshing: asyncio.Task[None] | None = None
        self._snapshots: dict[
            str, tuple[str, Snapshot]
        ] = {}  # by fingerprint: the manifest's version, and what it says
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
        if self._view is not None and _COMMIT.match(revision):
            # A commit never means anything else later: no need to look again.
            if known := self._view.find(repo_id, revision) or self._kept(repo_id, revision):
                return known
        return (await self.view()).find(repo_id, revision) or self._kept(repo_id, revision)

    async def view(self) -> View:
        """Return the store's content, at most `max_age_s` seconds old unless it cannot be read.

        Raises:
            StoreError: it could not be read, and there is no view of the last minutes.
        """
        if self._view is None or time.monotonic() - self._tried_at > self._max_age_s:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh())
            # Not awaited itself: one client that leaves must not end what others wait for.
            refreshing = self._refreshing
            await asyncio.wait([refreshing], timeout=None if self._view is None else _PATIENCE_S)
            if refreshing.done():
                refreshing.result()
        assert self._view is not None
        return self._view

    async def _refresh(self) -> None:
        began = time.monotonic()
        try:
            view = await asyncio.to_thread(self._read)
        except StoreError as error:
            self._tried_at = time.monotonic()
            if self._view is None or self._tried_at - self._read_at > _OUTAGE_S:
                raise
            log.warning("the store cannot be listed; what it held before is served: %s", error)
            return
        if self._view is not None:
            self._keep(self._view, view)
        self._view, self._read_at, self._tried_at = view, began, began

    def _read(self) -> View:
        """Read the pointers, and the manifests that are new. Runs in a thread, one at a time."""
        revisions = self._store.revisions()
        versions = {fingerprint: found.version for fingerprint, found in self._store.fingerprints().items()}
        pointed = {revision.fingerprint for revision in revisions}
        kept = {name: known for name, known in self._snapshots.items() if known[0] == versions.get(name)}
        reasons = {}
        for fingerprint in sorted(pointed - set(kept)):
            try:
                kept[fingerprint] = versions.get(fingerprint, ""), self._store.snapshot(fingerprint)
            except (ArtifactNotFoundError, IntegrityError) as error:
                reasons[fingerprint] = str(error)
        self._snapshots = {name: known for name, known in kept.items() if name in pointed}
        entries = [Entry(one, kept[one.fingerprint][1]) for one in revisions if one.fingerprint in kept]
        broken = {
            (one.repo_id, one.revision): reasons[one.fingerprint] for one in revisions if one.fingerprint in reasons
        }
        before = self._view or View()
        for name, reason in broken.items():
            if before.broken.get(name) != reason:
                log.error("%s@%s is left out: %s", *name, reason)
        return View.of(entries, broken, before.namespaces)

    def _keep(self, old: View, new: View) -> None:
        """Remember for a while what no name points to any more."""
        now = time.monotonic()
        for entry in old.entries:
            repo_id, commit = entry.revision.repo_id, entry.snapshot.commit
            if new.find(repo_id, commit) is None:
                self._left[repo_id, commit] = now, entry
        fresh = [(key, left) for key, left in self._left.items() if now - left[0] < _KEEP_S]
        self._left = dict(fresh[-_MOST_KEPT:])

    def _kept(self, repo_id: str, commit: str) -> Entry | None:
        left = self._left.get((repo_id, commit))
        return left[1] if left is not None and time.monotonic() - left[0] < _KEEP_S else None
