"""What a store holds, a row a name: facts of each artifact, and those that are broken. No torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from eva_dist.artifact.manifest_facts import read_facts
from eva_dist.errors import StoreError
from eva_dist.store.snapshot import Snapshot
from eva_dist.store.store import Revision, Store

BROKEN = "broken"
_AT_ONCE = 16
_LARGEST = 1e15


@dataclass(frozen=True)
class Facts:
    """What a manifest says of its artifact; None for what it does not say in the right type."""

    status: str
    base_model: str | None
    data: str | None
    r: float | None
    rho: float | None
    tau: float | None
    whiten: bool | None
    created: str | None
    size: int | None


@dataclass(frozen=True)
class Listed:
    """A name in a store, what it points to, and what is wrong with that, if anything."""

    repo_id: str
    revision: str
    fingerprint: str
    moved: datetime
    facts: Facts
    problem: str | None = None

    @property
    def name(self) -> str:
        """The words that other commands take."""
        return f"{self.repo_id}@{self.revision}"

    @property
    def status(self) -> str:
        """`done`, `not_converged`, or `broken`."""
        return self.facts.status

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        own = {"name": self.name, "repo_id": self.repo_id, "revision": self.revision, "fingerprint": self.fingerprint}
        return {**own, "moved": self.moved.isoformat(timespec="seconds"), **asdict(self.facts), "problem": self.problem}


SORTS: Mapping[str, Callable[[Listed], Any]] = {
    "name": lambda row: (row.repo_id, row.revision),
    "age": lambda row: -row.moved.timestamp(),
    "size": lambda row: -(row.facts.size or 0),
    "r": lambda row: (row.facts.r is None, row.facts.r),
    "rho": lambda row: (row.facts.rho is None, row.facts.rho),
    "tau": lambda row: (row.facts.tau is None, row.facts.tau),
    "status": lambda row: row.status,
    "model": lambda row: row.facts.base_model or "",
}
"""What rows can be ordered by: the youngest and the largest come first."""


def list_store(store: Store, pattern: str | None = None, by: str = "name") -> list[Listed]:
    """Return the names of a store that a pattern fits, in order; manifests are read some at a time.

    Raises:
        StoreError: the store cannot be read at all.
    """
    wanted = [one for one in store.revisions() if pattern is None or fits(one.repo_id, one.revision, pattern)]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        rows = list(threads.map(lambda one: _row(store, one), wanted))
    return sorted(sorted(rows, key=SORTS["name"]), key=SORTS[by])


def fits(repo_id: str, revision: str, pattern: str) -> bool:
    """Tell whether a name fits a pattern, of globs: `namespace`, `name`, `namespace/name`, each with `@revision`."""
    of_repo, at, of_revision = pattern.partition("@")
    if at and not fnmatchcase(revision, of_revision or "*"):
        return False
    if "/" in of_repo:
        return fnmatchcase(repo_id, of_repo + "*" if of_repo.endswith("/") else of_repo)
    return not of_repo or any(fnmatchcase(part, of_repo) for part in repo_id.split("/"))


def facts_of(snapshot: Snapshot) -> Facts:
    """Return what a manifest says, as the pages read it too; nothing in it is believed to have a type."""
    known = read_facts(snapshot, snapshot.fingerprint)
    return Facts(
        status=known.status,
        base_model=known.base_model,
        data=known.data,
        r=_whole(known.r),
        rho=known.rho,
        tau=known.tau,
        whiten=known.whiten,
        created=None if known.created is None else known.created.isoformat(),
        size=known.size,
    )


def short_path(text: str | None) -> str | None:
    """Return the last part of a path on some machine; a model or data set of the Hub as it is."""
    if text is None or text.count("/") <= 1 and not text.startswith(("/", "~", ".")):
        return text
    return PurePath(text).name or text


def at(manifest: Any, *keys: str) -> Any:
    """Return what lies under these keys, None where there is no such place."""
    for key in keys:
        manifest = manifest.get(key) if isinstance(manifest, dict) else None
    return manifest


def nearest(wrong: str, names: Sequence[str]) -> Iterator[str]:
    """Yield the names that are most like a wrong one."""
    import difflib

    lower = {name.lower(): name for name in names}
    yield from (lower[name] for name in difflib.get_close_matches(wrong.lower(), lower, n=3, cutoff=0.5))


def _row(store: Store, one: Revision) -> Listed:
    nothing = Facts(BROKEN, None, None, None, None, None, None, None, None)
    named = one.repo_id, one.revision, one.fingerprint, one.moved
    try:
        facts = facts_of(store.snapshot(one.fingerprint))
    except StoreError as error:
        return Listed(*named, nothing, str(error))
    if store.root is not None and store.find(one.fingerprint) is None:  # in a bucket, that is a request a file
        return Listed(*named, Facts(**{**asdict(facts), "status": BROKEN}), "files are missing or cut")
    return Listed(*named, facts)


def _whole(value: float | None) -> float | None:
    """Return a number as JSON has a whole one, if it is."""
    return int(value) if value is not None and value.is_integer() and abs(value) < _LARGEST else value
