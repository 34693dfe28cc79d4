"""Summary and details of artifacts, kept by commit: an artifact never changes, so what was read of it stays right."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eva_dist.artifact.summary import Summary, read_summary
from eva_dist.gateway.catalogue.detail import Detail, read_detail
from eva_dist.gateway.catalogue.layout import url_path

if TYPE_CHECKING:
    from eva_dist.gateway.index import Entry
    from eva_dist.store.snapshot import Revision, Snapshot
    from eva_dist.store.store import Store

_MOST_LISTED = 20_000
_MOST_DETAILS = 64
_AT_ONCE = 4


@dataclass(frozen=True)
class ListedArtifact:
    """A revision in the catalogue, with what is known of its artifact."""

    revision: Revision
    snapshot: Snapshot
    facts: Summary
    haystack: str

    @property
    def name(self) -> str:
        """What the pages and the commands call it: `team/name@revision`."""
        return f"{self.revision.repo_id}@{self.revision.revision}"

    @property
    def url(self) -> str:
        """Where its page is."""
        return f"/artifact/{url_path(self.revision.repo_id)}/{url_path(self.revision.revision)}"


class ArtifactCache:
    """What was read of a store's artifacts; bounded, the oldest goes first."""

    def __init__(self, store: Store) -> None:
        """Read from this store."""
        self._store = store
        self._listed: OrderedDict[tuple[Revision, str], ListedArtifact] = OrderedDict()
        self._details: OrderedDict[str, Detail] = OrderedDict()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def listed(self, entries: Sequence[Entry]) -> list[ListedArtifact]:
        """Return the entries with their facts, in their order."""
        if all((entry.revision, entry.snapshot.commit) in self._listed for entry in entries):
            return [self._list_entry(entry) for entry in entries]
        return await asyncio.to_thread(lambda: [self._list_entry(entry) for entry in entries])

    async def detail(self, snapshot: Snapshot) -> Detail:
        """Return what an artifact's page draws."""
        async with self._slots:
            known = self._details.get(snapshot.commit)
            if known is None:
                known = await asyncio.to_thread(read_detail, self._store, snapshot)
                if not known.problems:  # a store that cannot be read now may be readable later
                    self._details[snapshot.commit] = known
                    while len(self._details) > _MOST_DETAILS:
                        self._details.popitem(last=False)
            else:
                self._details.move_to_end(snapshot.commit)
            return known

    def _list_entry(self, entry: Entry) -> ListedArtifact:
        key = entry.revision, entry.snapshot.commit
        known = self._listed.get(key)
        if known is None:
            facts = read_summary(entry.snapshot, entry.revision.fingerprint)
            known = ListedArtifact(entry.revision, entry.snapshot, facts, haystack(entry.revision, facts))
            self._listed[key] = known
            while len(self._listed) > _MOST_LISTED:
                self._listed.popitem(last=False)
        return known


def haystack(revision: Revision, facts: Summary) -> str:
    """Return all that a search looks through, in lower case."""
    settings = " ".join(f"{key}={value}" for key, value in facts.settings.items())
    known = (f"{revision.repo_id}@{revision.revision}", facts.base_model, facts.data, facts.fingerprint, facts.commit,
             facts.status, facts.status.replace("_", " "), facts.solver, facts.method, settings)  # fmt: skip
    return " ".join(str(text) for text in known if text).lower()
