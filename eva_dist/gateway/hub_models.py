"""Artifacts as the Hub's API describes models: JSON values out of manifests, pure.

Every file is described as one in LFS: its sha256 is what clients verify, and the git id is that of the LFS pointer, as
git itself would have it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from eva_dist.artifact.card.front_matter import TAGS
from eva_dist.gateway.index import Entry, last_moved
from eva_dist.store.name_rules import MAIN
from eva_dist.store.snapshot import FileEntry

LIBRARY = "peft"


def model(entry: Entry, entries: Sequence[Entry], private: bool, blobs: bool = False) -> dict[str, Any]:
    """Describe a repo at a revision.

    Args:
        entry: the revision.
        entries: all revisions of the repo.
        private: whether a token is needed.
        blobs: with size and hashes of each file.
    """
    files = entry.snapshot.files.values()
    return {
        **listed(entry, entries, private),
        "lastModified": timestamp(entry.revision.moved),
        "disabled": False,
        "cardData": card(entry),
        "siblings": [_describe_sibling(file) if blobs else {"rfilename": file.path} for file in files],
        "spaces": [],
        "usedStorage": sum(
            {file.sha256: file.size for one in entries for file in one.snapshot.files.values()}.values()
        ),
    }


def listed(entry: Entry, entries: Sequence[Entry], private: bool) -> dict[str, Any]:
    """Describe a repo in a list; `entry` is its revision that moved last."""
    repo_id = entry.revision.repo_id
    return {
        "_id": hashlib.sha256(repo_id.encode()).hexdigest()[:24],
        "id": repo_id,
        "modelId": repo_id,
        "author": repo_id.partition("/")[0],
        "sha": entry.snapshot.commit,
        "private": private,
        "gated": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags(entry),
        "library_name": LIBRARY,
        "createdAt": timestamp(min(one.revision.moved for one in entries)),
        "lastModified": timestamp(max(one.revision.moved for one in entries)),
    }


def card(entry: Entry) -> dict[str, Any]:
    """Return the card's metadata, from the manifest."""
    base = _base_model(entry)
    return {"library_name": LIBRARY, **({"base_model": base} if base else {}), "tags": list(TAGS)}


def tags(entry: Entry) -> list[str]:
    """Return what `filter=` looks for."""
    base = _base_model(entry)
    based = [f"base_model:{base}", f"base_model:adapter:{base}"] if base else []
    status = entry.snapshot.manifest.get("status")
    return [LIBRARY, "safetensors", *TAGS, *based, *([status] if isinstance(status, str) else [])]


def refs(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return revisions as branches, `main` among them whatever it is."""
    commits = {one.revision.revision: one.snapshot.commit for one in entries}
    commits = {MAIN: last_moved(entries).snapshot.commit} | commits
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in commits.items()]
    return {"branches": branches, "tags": [], "converts": [], "pullRequests": []}


def commits(entry: Entry) -> list[dict[str, Any]]:
    """Return the one commit that a revision is."""
    last = _last_commit(entry)
    return [{"id": last["id"], "title": last["title"], "message": "", "date": last["date"], "authors": []}]


def tree(entry: Entry, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any]] | None:
    """Return what a folder (empty: all) holds, folders before what is in them; None if there is no such folder."""
    inside = {
        path: file for path, file in entry.snapshot.files.items() if path.startswith(f"{folder}/" if folder else "")
    }
    if not inside:
        return None
    found: dict[str, dict[str, Any]] = {}
    for path, file in inside.items():
        for parent in _parent_folders(path, folder):
            found.setdefault(parent, _describe_folder(entry, parent, expand))
        found[path] = _describe_file(entry, file, expand)
    depth = folder.count("/") + 1 if folder else 0
    return [item for path, item in found.items() if recursive or path.count("/") == depth]


def paths(entry: Entry, asked: Sequence[str], expand: bool) -> list[dict[str, Any]]:
    """Return the files and folders of those that were asked for; what is not there is left out."""
    files = entry.snapshot.files
    folders = {parent for path in files for parent in _parent_folders(path, "")}
    found = []
    for path in dict.fromkeys(one.strip("/") for one in asked):
        if path in files:
            found.append(_describe_file(entry, files[path], expand))
        elif path in folders:
            found.append(_describe_folder(entry, path, expand))
    return found


def timestamp(moment: datetime) -> str:
    """Return a moment as the Hub writes it: `2026-01-31T12:00:00.000Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _base_model(entry: Entry) -> str | None:
    described = entry.snapshot.manifest.get("model")
    name = described.get("id") if isinstance(described, Mapping) else None
    return name if isinstance(name, str) and name else None


def _parent_folders(path: str, below: str) -> Iterator[str]:
    parts = path.split("/")
    start = below.count("/") + 2 if below else 1
    return ("/".join(parts[:depth]) for depth in range(start, len(parts)))


def _describe_sibling(file: FileEntry) -> dict[str, Any]:
    oid, pointer_size = _lfs_pointer(file.sha256, file.size)
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": pointer_size}
    return {"rfilename": file.path, "size": file.size, "blobId": oid, "lfs": lfs}


def _describe_file(entry: Entry, file: FileEntry, expand: bool) -> dict[str, Any]:
    oid, pointer_size = _lfs_pointer(file.sha256, file.size)
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_size}
    last = {"lastCommit": _last_commit(entry)} if expand else {}
    return {"type": "file", "oid": oid, "size": file.size, "path": file.path, "lfs": lfs, **last}


def _describe_folder(entry: Entry, path: str, expand: bool) -> dict[str, Any]:
    oid = hashlib.sha256(f"{entry.snapshot.commit}/{path}".encode()).hexdigest()[:40]
    last = {"lastCommit": _last_commit(entry)} if expand else {}
    return {"type": "directory", "oid": oid, "size": 0, "path": path, **last}


def _last_commit(entry: Entry) -> dict[str, Any]:
    title = f"{entry.revision.repo_id} {entry.revision.revision}"
    return {"id": entry.snapshot.commit, "title": title, "date": timestamp(entry.revision.moved)}


@lru_cache(maxsize=10_000)
def _lfs_pointer(sha256: str, size: int) -> tuple[str, int]:
    """Return the git id and the size of a file's LFS pointer."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    blob = b"blob %d\0" % len(text) + text
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest(), len(text)
