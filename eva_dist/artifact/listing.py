"""What a store holds, a row a name: the summary of each artifact, and those that are broken. No torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from eva_dist.artifact.reading import last_part
from eva_dist.artifact.summary import UNREAD, Summary, read_summary
from eva_dist.errors import StoreError
from eva_dist.store.store import Revision, Store

BROKEN = "broken"
_AT_ONCE = 16


@dataclass(frozen=True)
class ListedName:
    """A name in a store, what it points to (None if that cannot be read), and what is wrong with it, if anything."""

    repo_id: str
    revision: str
    fingerprint: str
    moved: datetime
    summary: Summary | None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The words that other commands take."""
        return f"{self.repo_id}@{self.revision}"

    @property
    def status(self) -> str:
        """`done`, `not_converged`, or `broken`."""
        return BROKEN if self.problem is not None or self.summary is None else self.summary.status

    @property
    def facts(self) -> dict[str, Any]:
        """What a list says of the artifact, by column; None for what is not known."""
        return (UNREAD if self.summary is None else self.summary.to_dict()) | {"status": self.status}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        own = {"name": self.name, "repo_id": self.repo_id, "revision": self.revision, "fingerprint": self.fingerprint}
        return {**own, "moved": self.moved.isoformat(timespec="seconds"), **self.facts, "problem": self.problem}


SORTS: Mapping[str, Callable[[ListedName], Any]] = {
    "name": lambda row: (row.repo_id, row.revision),
    "age": lambda row: -row.moved.timestamp(),
    "size": lambda row: -(row.facts["size"] or 0),
    "r": lambda row: (row.facts["r"] is None, row.facts["r"]),
    "rho": lambda row: (row.facts["rho"] is None, row.facts["rho"]),
    "tau": lambda row: (row.facts["tau"] is None, row.facts["tau"]),
    "status": lambda row: row.status,
    "model": lambda row: row.facts["base_model"] or "",
}
"""What rows can be ordered by: the youngest and the largest come first."""


def list_store(store: Store, pattern: str | None = None, by: str = "name") -> list[ListedName]:
    """Return the names of a store that a pattern fits, in order; manifests are read some at a time.

    Raises:
        StoreError: the store cannot be read at all.
    """
    wanted = [one for one in store.revisions() if pattern is None or fits(one.repo_id, one.revision, pattern)]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        rows = list(threads.map(lambda one: _listed_name(store, one), wanted))
    return sorted(sorted(rows, key=SORTS["name"]), key=SORTS[by])


def fits(repo_id: str, revision: str, pattern: str) -> bool:
    """Tell whether a name fits a pattern, of globs: `namespace`, `name`, `namespace/name`, each with `@revision`."""
    of_repo, at, of_revision = pattern.partition("@")
    if at and not fnmatchcase(revision, of_revision or "*"):
        return False
    if "/" in of_repo:
        return fnmatchcase(repo_id, of_repo + "*" if of_repo.endswith("/") else of_repo)
    return not of_repo or any(fnmatchcase(part, of_repo) for part in repo_id.split("/"))


def short_path(text: str | None) -> str | None:
    """Return the last part of a path on some machine; a model or data set of the Hub, `org/name`, as it is."""
    if text is None:
        return None
    return last_part(text if text.count("/") <= 1 else f"./{text}")


def nearest(wrong: str, names: Sequence[str]) -> Iterator[str]:
    """Yield the names that are most like a wrong one."""
    import difflib

    lower = {name.lower(): name for name in names}
    yield from (lower[name] for name in difflib.get_close_matches(wrong.lower(), lower, n=3, cutoff=0.5))


def _listed_name(store: Store, one: Revision) -> ListedName:
    """Look at what a name points to; whatever ails it is said in its row, for one must not hide the others."""
    named = one.repo_id, one.revision, one.fingerprint, one.moved
    try:
        summary = read_summary(store.snapshot(one.fingerprint))
    except StoreError as error:
        return ListedName(*named, None, str(error))
    if store.root is not None and store.find(one.fingerprint) is None:  # in a bucket, that is a request a file
        return ListedName(*named, summary, "files are missing or cut")
    return ListedName(*named, summary)
