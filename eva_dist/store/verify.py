"""Verify a store, or one artifact wherever it lies: read every byte and compare it with the manifests."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from eva_dist.errors import EvaDistError, IntegrityError, StoreError
from eva_dist.store.artifact_reader import ArtifactReader, FolderArtifactReader
from eva_dist.store.artifact_ref import RefKind, parse_artifact_ref
from eva_dist.store.name_rules import OBJECTS
from eva_dist.store.open_artifact import open_artifact
from eva_dist.store.snapshot import MANIFEST_FILE, FileEntry, part_ranges
from eva_dist.store.store import Store
from eva_dist.store.transfer_progress import counting


@dataclass(frozen=True)
class CheckResult:
    """One thing that was looked at: a file of an artifact, or a revision.

    Attributes:
        name: the fingerprint of the artifact, or `namespace/name@revision`.
        path: the file; None if the result is about a revision.
        size: bytes of the file.
        problem: what is wrong, and the remedy; None if it is as it should be.
    """

    name: str
    path: str | None
    size: int
    problem: str | None


def verify_store(store: Store) -> Iterator[CheckResult]:
    """Yield each file of each artifact and each revision; every blob is read once, however many artifacts have it.

    Raises:
        StoreError: the store cannot be read at all.
    """
    problem_of: dict[str, str | None] = {}
    readable = set()
    for fingerprint in store.fingerprints():
        try:
            snapshot = store.snapshot(fingerprint)
        except StoreError as error:
            yield CheckResult(fingerprint, MANIFEST_FILE, 0, str(error))
            continue
        readable.add(fingerprint)
        yield CheckResult(fingerprint, MANIFEST_FILE, len(snapshot.content), snapshot.changed)
        for entry in snapshot.files.values():
            if entry.path == MANIFEST_FILE:  # has been read, and is no blob
                continue
            if entry.sha256 not in problem_of:
                problem_of[entry.sha256] = _problem_of_file(store.verify_file, entry, None)
            yield CheckResult(fingerprint, entry.path, entry.size, problem_of[entry.sha256])
    yield from _check_revisions(store, readable)


def verify_store_by_name(store: Store) -> list[CheckResult]:
    """Verify a store, and call its artifacts by the names that point to them; a bar shows how far it is.

    Raises:
        StoreError: the store cannot be read at all, or its folder is none of a store.
    """
    if store.root is not None and not (store.root / OBJECTS).is_dir():
        raise StoreError(
            f"store.url={store.url} holds nothing, for it has no folder {OBJECTS}; name one that is a store"
        )
    total = 0
    for fingerprint in store.fingerprints():
        with suppress(EvaDistError):  # the verification itself will say so
            total += store.snapshot(fingerprint).size
    names: dict[str, list[str]] = {}
    for revision in store.revisions():
        names.setdefault(revision.fingerprint, []).append(revision.name)
    results = []
    with counting(f"reading {store.url}", total, None) as arrived:
        for one in verify_store(store):
            arrived(one.size)
            results.append(replace(one, name=", ".join(names.get(one.name, [one.name]))))
    return results


def verify_artifact(source: str, store_url: str) -> tuple[str, list[CheckResult]]:
    """Verify one artifact; a bar shows how far it is. Return where it lies and a result for each file.

    Raises:
        ConfigError, ArtifactNotFoundError, IntegrityError, StoreError: see `open_artifact`.
    """
    ref = parse_artifact_ref(source, store_url)
    results: list[CheckResult] = []
    check_file: Callable[[FileEntry], object]
    if ref.kind is RefKind.store and ref.repo_id:  # the store's own bytes, whatever this machine's cache has
        store = Store(ref.url)
        revision = store.resolve(ref.repo_id, ref.revision)
        snapshot, where = store.snapshot(revision.fingerprint), store.revision_url(ref.repo_id, revision.revision)
        check_file = store.verify_file
        if problem := store.view_problem(revision):
            results.append(CheckResult(source, None, 0, problem))
    else:
        reader = open_artifact(ref)
        snapshot, where = reader.snapshot, reader.where
        check_file = functools.partial(_verify_remote_file, reader)
    with counting(f"reading {where}", snapshot.size, None) as arrived:
        for entry in snapshot.files.values():
            problem = _problem_of_file(check_file, entry, snapshot.changed)
            results.append(CheckResult(source, entry.path, entry.size, problem))
            arrived(entry.size)
    return where, results


def _check_revisions(store: Store, readable: set[str]) -> Iterator[CheckResult]:
    """Yield each revision, and what is wrong if it leads to none of the `readable` fingerprints."""
    revisions, broken = store.revisions_and_broken()
    for key in broken:
        problem = "does not say what it points to; publish the artifact again under this name, or remove the name"
        yield CheckResult(key, None, 0, problem)
    for one in revisions:
        lost = f"points to {one.fingerprint}, which the store does not hold; remove it, or publish it again"
        yield CheckResult(one.name, None, 0, store.view_problem(one) if one.fingerprint in readable else lost)


def _problem_of_file(check_file: Callable[[FileEntry], object], entry: FileEntry, changed: str | None) -> str | None:
    """Return what is wrong with a file; `changed` is what the manifest, which has been read, says of itself."""
    try:
        if entry.path == MANIFEST_FILE:
            return changed
        check_file(entry)
    except EvaDistError as error:
        return str(error)
    return None


def _verify_remote_file(reader: ArtifactReader, entry: FileEntry) -> None:
    """Hash a file of an artifact in parts, so that a file larger than memory or disk can be verified."""
    if isinstance(reader, FolderArtifactReader):
        reader.fetch([entry.path], False)
        return
    digest = hashlib.sha256()
    for start, end in part_ranges(entry.size):
        digest.update(reader.read_range(entry.path, start, end))
    if digest.hexdigest() != entry.sha256:
        raise IntegrityError(
            f"has sha256 {digest.hexdigest()}, its manifest says {entry.sha256}; ask who published it to do so again"
        )
