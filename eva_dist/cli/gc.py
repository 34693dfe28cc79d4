"""`eva-dist gc`: show what nothing in a store names any more, or remove it."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.cli.options import STORE, AsJson, StoreUrl
from eva_dist.cli.store_access import command_on_store, open_existing_store
from eva_dist.cli.terminal import Column, duration, print_json, print_table, say, size_text
from eva_dist.errors import ConfigError, EvaDistError

if TYPE_CHECKING:
    from eva_dist.store.gc import Garbage
    from eva_dist.store.store import Store

_GARBAGE_COLUMNS = (
    Column("what", itemgetter(0)),
    Column("size", lambda item: size_text(item[1]), right=True),
    Column("why", itemgetter(2), drop=1),
)
_LONGEST_PATH = 40
_MOST_LISTED = 20


def gc(
    store: StoreUrl = STORE,
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="Leave alone what is younger: 90s, 30m, 24h, 7d.")
    ] = "24h",
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what nothing names in a store, and how much it is; with --delete, remove it.

    Artifacts that no name points to go, files that no artifact has, and what a publisher that was killed has left.
    Younger ones stay: someone may be about to name them.
    """
    from eva_dist.store.gc import find_garbage, remove_garbage

    age = duration(older_than)
    if age is None:
        raise ConfigError(f"--older-than={older_than} must be a number and s, m, h or d; e.g. --older-than 24h")
    opened = open_existing_store(store)
    found = find_garbage(opened, age)
    removed = remove_garbage(opened, found) if delete else None
    if as_json:
        print_json(garbage_document(store, found, removed))
        return
    print_garbage(opened, found, removed, older_than)


def garbage_document(store: str, found: "Garbage", removed: int | None) -> dict[str, Any]:
    """Return what `--json` prints; `removed` is None where nothing was to be removed."""
    return {
        "store": store,
        "older_than_s": found.older_than.total_seconds(),
        "deleted": removed is not None,
        "bytes": found.size if removed is None else removed,
        "artifacts": list(found.manifests),
        "blobs": [{"key": blob.key, "size": blob.size} for blob in found.blobs],
        "paths": [str(path) for path in found.paths],
    }


def print_garbage(store: "Store", found: "Garbage", removed: int | None, older_than: str) -> None:
    """Print what would go and the command that removes it, or how much was freed."""
    if not (found.manifests or found.blobs or found.paths):
        from eva_dist.store.gc import find_garbage

        say(f"nothing to free in {store.url}: all that is older than {older_than} is named")
        if young := find_garbage(store, timedelta(0)).size:
            say(f"{size_text(young)} that nothing names is younger; --older-than says when it may go")
        return
    if removed is not None:
        say(f"freed {size_text(removed)} in {store.url}: {count_garbage(found)}")
        return
    rows = list(list_garbage(store, found))
    print_table(_GARBAGE_COLUMNS, rows[:_MOST_LISTED])
    if len(rows) > _MOST_LISTED:
        say(f"and {len(rows) - _MOST_LISTED} more; --json has them all")
    given = "" if older_than == "24h" else f" --older-than {older_than}"
    command = f"{command_on_store('gc', store.url)}{given} --delete"
    say(f"{count_garbage(found)}: {size_text(found.size)} would be freed; do it: {command}")


def list_garbage(store: "Store", found: "Garbage") -> Iterator[tuple[str, int | None, str]]:
    """Yield what would go, its size, and why: artifacts with the files that are theirs alone, then the rest."""
    from eva_dist.artifact.reading import at
    from eva_dist.store.store_reader import blob_key

    sizes = {blob.key: blob.size for blob in found.blobs}
    for fingerprint in found.manifests:
        was, own = "", 0
        with contextlib.suppress(EvaDistError):
            snapshot = store.snapshot(fingerprint)
            own = sum(sizes.pop(blob_key(entry.sha256), 0) for entry in snapshot.files.values())
            was = f" ({at(snapshot.manifest, 'repo_id')}@{at(snapshot.manifest, 'revision')})"
        yield f"artifact {fingerprint[:12]}{was}", own, "no name points to it"
    if sizes:
        yield f"{len(sizes)} file{'' if len(sizes) == 1 else 's'}", sum(sizes.values()), "no artifact has it"
    for path in found.paths:
        inside = store.root is not None and path.is_relative_to(store.root)
        shown = str(path.relative_to(store.root)) if inside and store.root else str(path)
        yield shown if len(shown) <= _LONGEST_PATH else f"{shown[: _LONGEST_PATH - 1]}…", None, "left behind"


def count_garbage(found: "Garbage") -> str:
    """Return e.g. `1 artifact, 3 files`."""
    counts = ((len(found.manifests), "artifact"), (len(found.blobs), "file"), (len(found.paths), "leftover"))
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count)
