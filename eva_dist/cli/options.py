"""Arguments and options that commands on artifacts share."""

import sys
from typing import Annotated

import typer

from eva_dist.cli.completion import STORE_VARIABLE, complete_names
from eva_dist.config import StoreConfig

STORE = StoreConfig().url
RUN, LOOK, USE, KEEP = "Run", "Look at artifacts", "Make and hand on artifacts", "Look after a store"
"""Panels of `eva-dist --help`."""

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="team/name\\[@revision] in the store; a folder; s3://bucket/prefix/team/name\\[@revision] (gs, az, abfs "
        "likewise); hf://org/name\\[@revision]; https://host/org/name\\[@revision].",
        autocompletion=complete_names,
        show_default=False,
    ),
]
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store", envvar=STORE_VARIABLE, help="A folder, file:///folder, s3://bucket/prefix, gs://, az:// or abfs://."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def is_terminal() -> bool:
    """Tell whether a person is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()
