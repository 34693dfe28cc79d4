"""`eva-dist serve` and `eva-dist token`: a store over HTTP, and who may read it."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eva_dist.cli.options import STORE, StoreUrl
from eva_dist.cli.store import existing_store
from eva_dist.errors import ConfigError

if TYPE_CHECKING:
    from eva_dist.gateway.access import Access


class UpstreamMode(StrEnum):
    """How a client gets what the store does not have."""

    proxy = "proxy"
    redirect = "redirect"


TokenFile = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="Who may read; `eva-dist token`.")]


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
        raise _no_aiohttp("serve", error) from error
    import asyncio

    from eva_dist.gateway.access import Access
    from eva_dist.gateway.app import make_app
    from eva_dist.gateway.server import check_host, say, serve_until_asked
    from eva_dist.gateway.upstream import upstream_of
    from eva_dist.logs import log_to_stderr

    check_host(host, token_file is not None)
    access = Access(token_file)
    there = upstream_of(upstream, upstream_mode.value, _secret(upstream_token_env), token_file is not None)
    opened = existing_store(store)
    count = len(opened.revisions())  # a store that cannot be read is told now, not to who asks first
    app = make_app(opened, access=access, upstream=there)
    log_to_stderr()

    def started(bound: int) -> None:
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        found = f"{count:,} artifact{'' if count == 1 else 's'}" if count else "no artifact yet"
        say(f"serving {store}, {found}, at {url} ({_who(access)})")
        token = "" if token_file is None else "HF_TOKEN=... "
        say(f"use it: HF_ENDPOINT={url} {token}hf download team/name --revision rho2.0-tau0.99")

    asyncio.run(serve_until_asked(app, host, port, started))


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is: it stands in the access log.")],
    namespace: Annotated[
        list[str], typer.Option("--namespace", metavar="TEAM", help="What it opens; several times; '*' for all.")
    ],
    token_file: TokenFile = None,
) -> None:
    """Make a token, print it once, and the line for the token file; with --token-file the line is added there."""
    try:
        from eva_dist.gateway.access import append_token, new_token
    except ImportError as error:
        raise _no_aiohttp("token", error) from error
    secret, kept = new_token(name, namespace)
    if token_file is not None:
        append_token(token_file, kept)
    print(f"token (shown this once; HF_TOKEN to Hub clients, EVA_DIST_TOKEN to eva-dist): {secret}")
    if token_file is None:
        print(f"line for the token file: {kept.line()}")
    else:
        print(f"added to {token_file}: {kept.name}")


def _no_aiohttp(command: str, error: ImportError) -> ConfigError:
    return ConfigError(f"`eva-dist {command}` needs aiohttp ({error}); install it: pip install 'eva-dist[serve]'")


def _secret(variable: str | None) -> str | None:
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret or not secret.isascii() or not secret.isprintable():
        raise ConfigError(
            f"--upstream-token-env {variable}: the environment must hold a token under this name; export it"
        )
    return secret


def _who(access: "Access") -> str:
    if access.is_open:
        return "no --token-file: loopback only, everybody on this machine may read everything"
    return f"{len(access.tokens)} tokens in {access.file}"
