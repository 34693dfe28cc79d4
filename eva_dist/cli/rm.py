"""`eva-dist rm`: take names of artifacts away."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, StoreUrl, is_terminal
from eva_dist.cli.store_access import command_on_store, open_store
from eva_dist.cli.terminal import say
from eva_dist.errors import ArtifactNotFoundError, ConfigError

if TYPE_CHECKING:
    from eva_dist.store.store import Revision, Store


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
    found = list(
        {(one.repo_id, one.revision): one for name in names for one in find_names(opened, name, all_of)}.values()
    )
    for one in found:
        say(f"{one.name}  {one.fingerprint[:12]}")
    if not yes:
        what = f"{len(found)} names" if len(found) > 1 else "this name"
        if not is_terminal():
            raise ConfigError(f"nobody is there to confirm that {what} shall go; give --yes")
        typer.confirm(f"Take {what} away from {store}?", abort=True, err=True)
    for one in found:
        opened.remove(one.repo_id, one.revision)
    gone = "names" if len(found) > 1 else "name"
    say(f"{gone} taken away; `{command_on_store('gc', store)} --delete` frees what nothing names once it is 24h old")


def find_names(store: "Store", name: str, all_of: bool) -> "Sequence[Revision]":
    """Return the names that are meant; several only if that was said."""
    from eva_dist.artifact.listing import fits, nearest

    repo_id, at, revision = name.partition("@")
    exact = bool(at and revision) and not set(name) & set("*?[")
    known = store.revisions()
    found = [one for one in known if (one.repo_id, one.revision) == (repo_id, revision)]
    if exact and found:
        return found
    names = [one.name for one in known]
    if not exact:
        found = [one for one in known if "/" in repo_id and fits(one.repo_id, one.revision, name)]
    if not found:
        near = ", ".join(nearest(name, names))
        hint = f"; did you mean {near}?" if near else f"; `eva-dist ls --store {store.url}` lists what there is"
        raise ArtifactNotFoundError(f"{store.url} has no {name}{hint}")
    if not all_of:
        listed = ", ".join(one.name for one in found[:5]) + (", ..." if len(found) > 5 else "")
        raise ConfigError(f"{name} fits {listed}; name one with its revision, or give --all to take all {len(found)}")
    return found
