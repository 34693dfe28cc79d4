"""`eva-dist push`: publish an artifact in a store, or on the Hub."""

import contextlib
import sys
from typing import Annotated, Any

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, SourceArgument, StoreUrl
from eva_dist.cli.terminal import print_json, say
from eva_dist.errors import ConfigError, StoreError

_HUB_SCHEMES = ("hf://", "https://", "http://")


def push(
    source: SourceArgument,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="team/name\\[@revision] in the store, s3://bucket/prefix/team/name\\[@revision] (gs, az, abfs, file "
            "likewise), hf://org/name\\[@revision], or https://host/org/name of another Hub. No revision: the "
            "artifact's own; on the Hub, main.",
            autocompletion=complete_names,
        ),
    ],
    store: StoreUrl = STORE,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace what is there: another artifact of that name, or files.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="On the Hub: make a new repo private.")] = False,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="On the Hub: the base model's name there, if the run read a folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish an artifact in a store under a name, or on the Hugging Face Hub. Prints its URL.

    SOURCE's files are verified first. What the store holds already does not travel again.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if target.startswith(_HUB_SCHEMES):
            facts = push_to_hub_target(source, store, target, private, base_model)
        else:
            facts = push_to_store_target(source, store, target, force)
    if as_json:
        print_json(facts)
    else:
        print(facts["url"])


def parse_store_target(target: str, store: str) -> tuple[str, str, str | None]:
    """Return store, repo_id and revision (None: not said) that TARGET names.

    Raises:
        ConfigError: it names no place in a store.
    """
    from eva_dist.store.artifact_ref import RefKind, parse_artifact_ref
    from eva_dist.store.name_rules import MAIN, check_names

    if "://" not in target:
        repo_id, at, revision = target.partition("@")
        try:
            check_names(repo_id, revision if at else MAIN)
        except StoreError as error:
            raise ConfigError(
                f"TARGET={target} must be team/name[@revision], s3://bucket/prefix/team/name[@revision] or "
                "hf://org/name[@revision]"
            ) from error
        return store, repo_id, revision if at else None
    ref = parse_artifact_ref(target, store)
    if ref.kind is not RefKind.store or not ref.repo_id:
        raise ConfigError(
            f"TARGET={target} must name a place in a store, e.g. s3://bucket/prefix/team/name@revision or "
            f"file:///folder/team/name@revision; or on the Hub: hf://org/name"
        )
    return ref.url, ref.repo_id, ref.revision


def push_to_store_target(source: str, store: str, target: str, force: bool) -> dict[str, Any]:
    """Publish in the store that TARGET names; return what is printed."""
    from eva_dist.store.open_artifact import fetch
    from eva_dist.store.push import push_folder

    url, repo_id, revision = parse_store_target(target, store)
    pushed = push_folder(fetch(source, store_url=store), url, repo_id, revision, force)
    was = f", it was {pushed.moved_from[:12]}" if pushed.moved_from else ""
    say(f"{repo_id}@{pushed.revision} is {pushed.fingerprint[:12]} now{was}")
    return {
        "url": pushed.url,
        "store": url,
        "repo_id": repo_id,
        "revision": pushed.revision,
        "fingerprint": pushed.fingerprint,
        "moved_from": pushed.moved_from,
    }


def push_to_hub_target(source: str, store: str, target: str, private: bool, base_model: str | None) -> dict[str, Any]:
    """Publish on the Hub that TARGET names; return what is printed."""
    from eva_dist.store.artifact_ref import parse_artifact_ref
    from eva_dist.transform.push_to_hub import push_to_hub

    ref = parse_artifact_ref(target)
    url = push_to_hub(
        source,
        ref.repo_id,
        revision=ref.revision,
        base_model=base_model,
        private=private or None,
        endpoint=ref.url or None,
        store_url=store,
    )
    return {"url": url, "repo_id": ref.repo_id, "revision": ref.revision}
