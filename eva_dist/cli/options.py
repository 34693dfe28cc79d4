"""Arguments and options that several commands share, and the checks that go with them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from eva_dist.cli.completion import STORE_VARIABLE, complete_names
from eva_dist.config import ArtifactConfig, StoreConfig
from eva_dist.errors import ConfigError

STORE = StoreConfig().url
RUN, LOOK, USE, KEEP = "Run", "Look at artifacts", "Make and hand on artifacts", "Look after a store"
"""Panels of `eva-dist --help`."""

SourceArgument = Annotated[
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

TokenFile = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="Who may read; `eva-dist token`.")]


def is_terminal() -> bool:
    """Tell whether a person is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def check_destination(store: str, repo_id: str | None, revision: str | None) -> None:
    """Raise `ConfigError` with every problem of `--store`, `--repo-id` and `--revision`."""
    problems = [*StoreConfig(store).problems(), *ArtifactConfig(repo_id, revision).problems()]
    if problems:
        raise ConfigError("\n".join(problems))


def missing_aiohttp(command: str, error: ImportError) -> ConfigError:
    """Return the error for a command that needs aiohttp where it is not installed."""
    return ConfigError(f"`eva-dist {command}` needs aiohttp ({error}); install it: pip install 'eva-dist[serve]'")
