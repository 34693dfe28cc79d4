"""`eva-dist ls` and `rm`: the names in a store."""

import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, StoreUrl, is_terminal
from eva_dist.cli.terminal import Column, age_text, cell, fitting_table, print_json, put, say, size_text, status_cell
from eva_dist.cli.terminal import stdout as results
from eva_dist.errors import ArtifactNotFoundError, ConfigError, StoreError

if TYPE_CHECKING:
    from eva_dist.artifact.listing import ListedName
    from eva_dist.store.store import Revision, Store

_COLUMNS = (
    Column("artifact"),
    Column("status"),
    Column("base model", drop=5),
    Column("r", right=True, drop=2),
    Column("rho", right=True, drop=2),
    Column("tau", right=True, drop=3),
    Column("data", drop=6),
    Column("size", right=True, drop=1),
    Column("age", right=True, drop=4),
    Column("fingerprint", drop=7),
)
_SORTS = "name, age, size, r, rho, tau, status, model"

Pattern = Annotated[
    str | None,
    typer.Argument(
        metavar="PATTERN",
        help="Namespace, name, namespace/name, with @revision or without; * and ? stand for anything.",
        autocompletion=complete_names,
        show_default=False,
    ),
]


def ls(
    pattern: Pattern = None,
    store: StoreUrl = STORE,
    as_json: AsJson = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Show so many at most.", show_default=False)] = None,
    sort: Annotated[str, typer.Option(help=f"One of {_SORTS}.")] = "name",
) -> None:
    """List the artifacts of a store: what each is, and whether it is whole.

    Broken ones are listed too. Age is how long ago the name was given. A narrow terminal shows fewer columns; a pipe
    and --json have them all.
    """
    from eva_dist.artifact.listing import SORTS, list_store, nearest

    if sort not in SORTS:
        near = "".join(f"; did you mean {name}?" for name in list(nearest(sort, list(SORTS)))[:1])
        raise ConfigError(f"--sort={sort} must be one of {_SORTS}{near}")
    opened = open_store(store)
    found = list_store(opened, pattern, sort)
    shown = found[:limit]
    if as_json:
        print_json({"store": store, "total": len(found), "artifacts": [row.to_dict() for row in shown]})
        return
    if not found:
        _nothing(opened, pattern)
        return
    now = datetime.now(UTC)
    console = results()
    put(console, fitting_table(_COLUMNS, [_cells(row, now) for row in shown], console.width))
    for row in shown:
        if row.problem:
            say(f"broken: {row.name}: {row.problem}")
    if len(shown) < len(found):
        say(f"{len(shown)} of {len(found)} shown; --limit {len(found)} shows all")


def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME@REVISION...",
            help="Names in the store. Without a revision, or with * and ?, it needs --all.",
            autocompletion=complete_names,
            show_default=False,
        ),
    ],
    store: StoreUrl = STORE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    all_of: Annotated[bool, typer.Option("--all", help="Take every name that fits.")] = False,
) -> None:
    """Take names of artifacts away; `eva-dist gc` then frees their space.

    Asks on a terminal; elsewhere it does nothing without --yes.
    """
    opened = open_store(store)
    found = list({(one.repo_id, one.revision): one for name in names for one in _named(opened, name, all_of)}.values())
    for one in found:
        say(f"{one.repo_id}@{one.revision}  {one.fingerprint[:12]}")
    if not yes:
        what = f"{len(found)} names" if len(found) > 1 else "this name"
        if not is_terminal():
            raise ConfigError(f"nobody is there to confirm that {what} shall go; give --yes")
        typer.confirm(f"Take {what} away from {store}?", abort=True, err=True)
    for one in found:
        opened.remove(one.repo_id, one.revision)
    gone = "names" if len(found) > 1 else "name"
    say(f"{gone} taken away; `{again('gc', store)} --delete` frees what nothing names once it is 24h old")


def open_store(url: str) -> "Store":
    """Return the store; `StoreError` if the URL can be none. obstore is imported here and not before."""
    from eva_dist.store.store import Store

    return Store(url)


def existing_store(url: str) -> "Store":
    """Return the store; nothing can be said of a folder that is not there, whose name may be mistyped.

    Raises:
        StoreError: the URL can be no store, or its folder is not there.
    """
    store = open_store(url)
    if store.root is not None and not store.root.is_dir():
        raise StoreError(
            f"store.url={url}: there is no folder {store.root}; name the one that holds the store (--store, or "
            "EVA_DIST_STORE), or publish an artifact there first"
        )
    return store


def _cells(row: "ListedName", now: datetime) -> list[Any]:
    from eva_dist.artifact.listing import short_path

    facts = row.facts
    numbers = (None if number is None else f"{number:g}" for number in (facts["r"], facts["rho"], facts["tau"]))
    return [
        cell(row.name),
        status_cell(row.status),
        cell(short_path(facts["base_model"])),
        *map(cell, numbers),
        cell(short_path(facts["data"])),
        cell(size_text(facts["size"])),
        cell(age_text(row.moved, now)),
        cell(row.fingerprint[:12]),
    ]


def _nothing(store: "Store", pattern: str | None) -> None:
    """Say why nothing is listed, and what to do."""
    from eva_dist.artifact.listing import nearest

    known = store.revisions()
    if known:
        names = sorted({part for one in known for part in (f"{one.repo_id}@{one.revision}", one.repo_id)})
        near = ", ".join(nearest(pattern or "", names))
        if pattern and any(pattern in name for name in names):
            near = f"'*{pattern}*'"
        say(f"no artifact of {len(known)} fits {pattern}" + (f"; did you mean {near}?" if near else ""))
        return
    missing = store.root is not None and not store.root.exists()
    say(f"no artifacts in {store.root or store.url}{': there is no such folder' if missing else ''}")
    say("another store:  eva-dist ls --store URL, or set EVA_DIST_STORE")
    say(f"compute one:    python jobs/precompute.py model=... data=... store.url={store.url}")
    say(f"put one in:     eva-dist push FOLDER team/name@revision --store {store.url}")


def _named(store: "Store", name: str, all_of: bool) -> "Sequence[Revision]":
    """Return the names that are meant; several only if that was said."""
    from eva_dist.artifact.listing import fits, nearest

    repo_id, at, revision = name.partition("@")
    exact = bool(at and revision) and not set(name) & set("*?[")
    known = store.revisions()
    found = [one for one in known if (one.repo_id, one.revision) == (repo_id, revision)]
    if exact and found:
        return found
    names = [f"{one.repo_id}@{one.revision}" for one in known]
    if not exact:
        found = [one for one in known if "/" in repo_id and fits(one.repo_id, one.revision, name)]
    if not found:
        near = ", ".join(nearest(name, names))
        hint = f"; did you mean {near}?" if near else f"; `eva-dist ls --store {store.url}` lists what there is"
        raise ArtifactNotFoundError(f"{store.url} has no {name}{hint}")
    if not all_of:
        listed = ", ".join(f"{one.repo_id}@{one.revision}" for one in found[:5]) + (", ..." if len(found) > 5 else "")
        raise ConfigError(f"{name} fits {listed}; name one with its revision, or give --all to take all {len(found)}")
    return found


def again(command: str, store: str) -> str:
    """Return a command of ours on the same store, as it is to be typed."""
    given = "" if os.environ.get("EVA_DIST_STORE") == store or store == STORE else f" --store {shlex.quote(store)}"
    return f"eva-dist {command}{given}"
