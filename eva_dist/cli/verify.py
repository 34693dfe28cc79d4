"""`eva-dist verify`: is every byte of a store, or of one artifact, what the manifests say?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, StoreUrl
from eva_dist.cli.store_access import open_existing_store
from eva_dist.cli.terminal import cell, print_json, say, size_text

if TYPE_CHECKING:
    from eva_dist.store.verify import CheckResult


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
    if source is None:
        opened = open_existing_store(store)
        from eva_dist.store.verify import verify_store_by_name

        where, results = opened.url, verify_store_by_name(opened)
    else:
        from eva_dist.store.verify import verify_artifact

        where, results = verify_artifact(source, store)
    print_results(where, results, as_json)


def print_results(where: str, results: "Sequence[CheckResult]", as_json: bool) -> None:
    """Print what was checked; exit with 1 if anything is wrong."""
    wrong = [one for one in results if one.problem]
    files = [one for one in results if one.path is not None]
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
