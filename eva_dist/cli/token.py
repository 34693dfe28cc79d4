"""`eva-dist token`: make a token that opens some namespaces of a served store."""

from typing import Annotated

import typer

from eva_dist.cli.options import TokenFile, missing_aiohttp


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
        raise missing_aiohttp("token", error) from error
    secret, kept = new_token(name, namespace)
    if token_file is not None:
        append_token(token_file, kept)
    print(f"token (shown this once; HF_TOKEN to Hub clients, EVA_DIST_TOKEN to eva-dist): {secret}")
    if token_file is None:
        print(f"line for the token file: {kept.line()}")
    else:
        print(f"added to {token_file}: {kept.name}")
