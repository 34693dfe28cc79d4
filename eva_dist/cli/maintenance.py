"""`eva-dist verify` and `gc`, alone and as `eva-dist store ...`: is every byte right, and what does nothing name."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, StoreUrl
from eva_dist.cli.store import again, existing_store
from eva_dist.cli.terminal import Column, cell, duration, fitting_table, print_json, put, say, size_text
from eva_dist.cli.terminal import stdout as results
from eva_dist.errors import ConfigError, EvaDistError, IntegrityError, StoreError

if TYPE_CHECKING:
    from eva_dist.store.artifact_reader import Opened
    from eva_dist.store.maintenance import Checked, Garbage
    from eva_dist.store.snapshot import FileEntry
    from eva_dist.store.store import Store

_PART_BYTES = 8 << 20
_COLUMNS = (Column("what"), Column("size", right=True), Column("why", drop=1))
_LONGEST = 40
_MOST_LISTED = 20

store_app = typer.Typer(help="Check a store, and free what nothing names in it.", no_args_is_help=True)


def verify(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="One artifact; without it, everything in the store.",
            autocompletion=complete_names,
            show_default=False,
        ),
    ] = None,
    store: StoreUrl = STORE,
    as_json: AsJson = False,
) -> None:
    """Read every byte and compare it with the manifests: of a store, or of one artifact.

    Exit code 1 when anything is wrong; each problem is a line that says what to do.
    """
    where, checked = _check_store(existing_store(store)) if source is None else _check_artifact(source, store)
    _report(where, checked, as_json)


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
    from eva_dist.store.maintenance import collect, garbage

    age = duration(older_than)
    if age is None:
        raise ConfigError(f"--older-than={older_than} must be a number and s, m, h or d; e.g. --older-than 24h")
    opened = existing_store(store)
    found = garbage(opened, age)
    removed = collect(opened, found) if delete else None
    if as_json:
        print_json(_garbage_facts(store, found, removed))
        return
    _say_garbage(opened, found, removed, older_than)


store_app.command("verify")(verify)
store_app.command("gc")(gc)


def _check_store(store: "Store") -> "tuple[str, list[Checked]]":
    from eva_dist.store.maintenance import verify as check
    from eva_dist.store.names import OBJECTS
    from eva_dist.store.progress_bar import counting

    if store.root is not None and not (store.root / OBJECTS).is_dir():
        raise StoreError(
            f"store.url={store.url} holds nothing, for it has no folder {OBJECTS}; name one that is a store"
        )
    total = sum(sum(entry.size for entry in snapshot.files.values()) for snapshot in _sound(store))
    named: dict[str, list[str]] = {}
    for revision in store.revisions():
        named.setdefault(revision.fingerprint, []).append(f"{revision.repo_id}@{revision.revision}")
    checked = []
    with counting(f"reading {store.url}", total, None) as arrived:
        for one in check(store):
            arrived(one.size)
            checked.append(dataclasses.replace(one, name=", ".join(named.get(one.name, [one.name]))))
    return store.url, checked


def _sound(store: "Store") -> "Iterator[Any]":
    for fingerprint in store.fingerprints():
        try:
            yield store.snapshot(fingerprint)
        except EvaDistError:  # it will be said when it is checked
            continue


def _check_artifact(source: str, store_url: str) -> "tuple[str, list[Checked]]":
    from eva_dist.store.artifact_ref import Kind, open_source, parse_source
    from eva_dist.store.maintenance import Checked
    from eva_dist.store.progress_bar import counting
    from eva_dist.store.store import Store

    parsed = parse_source(source, store_url)
    checked: list[Checked] = []
    if parsed.kind is Kind.store and parsed.repo_id:  # the store's own bytes, whatever this machine's cache has
        store = Store(parsed.url)
        revision = store.resolve(parsed.repo_id, parsed.revision)
        snapshot, where = store.snapshot(revision.fingerprint), store.revision_url(parsed.repo_id, revision.revision)
        check: Callable[[FileEntry], object] = store.verify_file
        if problem := store.view_problem(revision):
            checked.append(Checked(source, None, 0, problem))
    else:
        opened = open_source(parsed)
        snapshot, where = opened.snapshot, opened.where
        check = functools.partial(_check_opened, opened)
    with counting(f"reading {where}", snapshot.size, None) as arrived:
        for entry in snapshot.files.values():
            checked.append(Checked(source, entry.path, entry.size, _problem(check, entry, snapshot.changed)))
            arrived(entry.size)
    return where, checked


def _problem(check: "Callable[[FileEntry], object]", entry: "FileEntry", changed: str | None) -> str | None:
    """Return what is wrong with a file; `changed` is what the manifest, which has been read, says of itself."""
    from eva_dist.store.snapshot import MANIFEST_FILE

    try:
        if entry.path == MANIFEST_FILE:
            return changed
        check(entry)
    except EvaDistError as error:
        return str(error)
    return None


def _check_opened(opened: "Opened", entry: "FileEntry") -> None:
    """Hash a file of an artifact that lies in a folder or on a Hub, a part at a time."""
    from eva_dist.store.artifact_reader import OpenedFolder

    if isinstance(opened, OpenedFolder):
        opened.fetch([entry.path], False)
        return
    digest = hashlib.sha256()
    for start in range(0, entry.size, _PART_BYTES):
        digest.update(opened.read_range(entry.path, start, min(start + _PART_BYTES, entry.size)))
    if digest.hexdigest() != entry.sha256:
        raise IntegrityError(
            f"has sha256 {digest.hexdigest()}, its manifest says {entry.sha256}; ask who published it to do so again"
        )


def _report(where: str, checked: "Sequence[Checked]", as_json: bool) -> None:
    """Print what was checked; exit with 1 if anything is wrong."""
    wrong = [one for one in checked if one.problem]
    files = [one for one in checked if one.path is not None]
    if as_json:
        problems = [{"name": one.name, "path": one.path, "problem": one.problem} for one in wrong]
        print_json({"where": where, "files": len(files), "bytes": sum(one.size for one in files), "problems": problems})
    else:
        for one in wrong:
            print(f"{cell(one.name)}{f' {cell(one.path)}' if one.path else ''}: {cell(one.problem)}")
        sizes = size_text(sum(one.size for one in files))
        names = len({one.name for one in files})
        total = f"{len(files)} files of {names} artifact{'' if names == 1 else 's'}, {sizes}, in {where}"
        say(f"{len(wrong)} wrong among {total}" if wrong else f"all right: {total}")
    if wrong:
        raise typer.Exit(1)


def _garbage_facts(store: str, found: "Garbage", removed: int | None) -> dict[str, Any]:
    return {
        "store": store,
        "older_than_s": found.older_than.total_seconds(),
        "deleted": removed is not None,
        "bytes": found.size if removed is None else removed,
        "artifacts": list(found.manifests),
        "blobs": [{"key": blob.key, "size": blob.size} for blob in found.blobs],
        "paths": [str(path) for path in found.paths],
    }


def _say_garbage(store: "Store", found: "Garbage", removed: int | None, older_than: str) -> None:
    if not (found.manifests or found.blobs or found.paths):
        from eva_dist.store.maintenance import garbage

        say(f"nothing to free in {store.url}: all that is older than {older_than} is named")
        if young := garbage(store, timedelta(0)).size:
            say(f"{size_text(young)} that nothing names is younger; --older-than says when it may go")
        return
    if removed is not None:
        say(f"freed {size_text(removed)} in {store.url}: {_counts(found)}")
        return
    rows = list(_lines(store, found))
    cells = [[cell(what), cell(None if size is None else size_text(size)), cell(why)] for what, size, why in rows]
    console = results()
    put(console, fitting_table(_COLUMNS, cells[:_MOST_LISTED], console.width))
    if len(rows) > _MOST_LISTED:
        say(f"and {len(rows) - _MOST_LISTED} more; --json has them all")
    given = "" if older_than == "24h" else f" --older-than {older_than}"
    say(f"{_counts(found)}: {size_text(found.size)} would be freed; do it: {again('gc', store.url)}{given} --delete")


def _lines(store: "Store", found: "Garbage") -> Iterator[tuple[str, int | None, str]]:
    """Yield what would go, its size, and why: artifacts with the files that are theirs alone, then the rest."""
    from eva_dist.artifact.reading import at
    from eva_dist.store.reader import blob_key

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
        yield shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…", None, "left behind"


def _counts(found: "Garbage") -> str:
    counts = ((len(found.manifests), "artifact"), (len(found.blobs), "file"), (len(found.paths), "leftover"))
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count)
