"""`eva-dist serve`: a store over HTTP, for clients of the Hub and for browsers."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from eva_dist.cli.options import STORE, StoreUrl, TokenFile, missing_aiohttp
from eva_dist.cli.store_access import open_existing_store
from eva_dist.cli.terminal import say
from eva_dist.errors import ConfigError
from eva_dist.render.words import counted

if TYPE_CHECKING:
    from eva_dist.gateway.access import Access


class UpstreamMode(StrEnum):
    """How a client gets what the store does not have."""

    proxy = "proxy"
    redirect = "redirect"


def serve(
    store: StoreUrl = STORE,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback only without --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: TokenFile = None,
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="Where to find what the store lacks: https://huggingface.co")
    ] = None,
    upstream_mode: Annotated[
        UpstreamMode, typer.Option(help="Fetch it for the client, or send the client there.")
    ] = UpstreamMode.proxy,
    upstream_token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with a token for the upstream.")
    ] = None,
) -> None:
    """Serve a store to clients of the Hugging Face Hub (set HF_ENDPOINT), and to browsers."""
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise missing_aiohttp("serve", error) from error
    import asyncio

    from eva_dist.gateway.access import Access
    from eva_dist.gateway.app import make_app
    from eva_dist.gateway.server import check_host, serve_until_asked
    from eva_dist.gateway.upstream import upstream_of
    from eva_dist.logs import log_to_stderr

    check_host(host, token_file is not None)
    access = Access(token_file)
    there = upstream_of(upstream, upstream_mode.value, read_secret(upstream_token_env), token_file is not None)
    opened = open_existing_store(store)
    count = len(opened.revisions())  # a store that cannot be read is told now, not to who asks first
    app = make_app(opened, access=access, upstream=there)
    log_to_stderr()

    def started(bound: int) -> None:
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        found = counted(count, "artifact") if count else "no artifact yet"
        say(f"serving {store}, {found}, at {url} ({describe_access(access)})")
        token = "" if token_file is None else "HF_TOKEN=... "
        say(f"use it: HF_ENDPOINT={url} {token}hf download team/name --revision rho2.0-tau0.99")

    asyncio.run(serve_until_asked(app, host, port, started))


def read_secret(variable: str | None) -> str | None:
    """Return the token that an environment variable holds; None if no variable is named."""
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret or not secret.isascii() or not secret.isprintable():
        raise ConfigError(
            f"--upstream-token-env {variable}: the environment must hold a token under this name; export it"
        )
    return secret


def describe_access(access: "Access") -> str:
    """Say who may read, for the line that is printed at the start."""
    if access.is_open:
        return "no --token-file: loopback only, everybody on this machine may read everything"
    return f"{len(access.tokens)} tokens in {access.file}"
