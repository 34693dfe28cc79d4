"""`eva-dist ls`: the artifacts of a store, a row each."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, StoreUrl
from eva_dist.cli.store_access import open_store
from eva_dist.cli.terminal import Column, age_text, cell, print_json, print_table, say, size_text
from eva_dist.errors import ConfigError

if TYPE_CHECKING:
    from eva_dist.store.store import Store


def _last_part(path: str | None) -> str | None:
    from eva_dist.artifact.listing import short_path

    return short_path(path)


def _number_text(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"


_STYLES = {"done": "green", "not_converged": "yellow", "broken": "bold red"}
_ARTIFACT_COLUMNS = (
    Column("artifact", lambda row: row.name),
    Column("status", lambda row: cell(row.status, _STYLES.get(row.status, ""))),
    Column("base model", lambda row: _last_part(row.facts["base_model"]), drop=5),
    Column("r", lambda row: _number_text(row.facts["r"]), right=True, drop=2),
    Column("rho", lambda row: _number_text(row.facts["rho"]), right=True, drop=2),
    Column("tau", lambda row: _number_text(row.facts["tau"]), right=True, drop=3),
    Column("data", lambda row: _last_part(row.facts["data"]), drop=6),
    Column("size", lambda row: size_text(row.facts["size"]), right=True, drop=1),
    Column("age", lambda row: age_text(row.moved, datetime.now(UTC)), right=True, drop=4),
    Column("fingerprint", lambda row: row.fingerprint[:12], drop=7),
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
        explain_empty_list(opened, pattern)
        return
    print_table(_ARTIFACT_COLUMNS, shown)
    for row in shown:
        if row.problem:
            say(f"broken: {row.name}: {row.problem}")
    if len(shown) < len(found):
        say(f"{len(shown)} of {len(found)} shown; --limit {len(found)} shows all")


def explain_empty_list(store: "Store", pattern: str | None) -> None:
    """Say why nothing is listed, and what to do."""
    from eva_dist.artifact.listing import nearest

    known = store.revisions()
    if known:
        names = sorted({part for one in known for part in (one.name, one.repo_id)})
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
