"""`eva-dist pull`: download an artifact into a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eva_dist.cli.options import STORE, AsJson, SourceArgument, StoreUrl
from eva_dist.cli.terminal import print_json, say, size_text
from eva_dist.errors import ConfigError

if TYPE_CHECKING:
    from eva_dist.store.artifact_reader import ArtifactReader


def pull(
    source: SourceArgument,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="New folder, or one that a pull has begun; default: ./NAME-REVISION."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="This file alone, e.g. eva_state_dict.safetensors; repeat.", show_default=False
        ),
    ] = None,
    store: StoreUrl = STORE,
    as_json: AsJson = False,
) -> None:
    """Download an artifact into a folder, verified; `PeftModel.from_pretrained(FOLDER)` loads it.

    Interrupted, it goes on where it was: the manifest comes first, files that are there and right are kept, and each
    other one appears by one rename. Prints the folder.
    """
    from eva_dist.store.open_artifact import open_artifact
    from eva_dist.store.pull import pull_artifact

    reader = open_artifact(source, store)
    target = folder or Path(default_folder(source, store))
    check_file_names(reader, only or ())
    pulled = pull_artifact(reader, target, only or None)
    say(
        f"{pulled.files} files, {size_text(pulled.size)}: {size_text(pulled.size - pulled.kept)} downloaded, "
        f"{size_text(pulled.kept)} were there; every sha256 is right"
    )
    if as_json:
        facts = {"files": pulled.files, "bytes": pulled.size, "kept_bytes": pulled.kept}
        print_json({"folder": str(target), "source": source, "fingerprint": reader.snapshot.fingerprint, **facts})
    else:
        print(target)


def default_folder(source: str, store: str) -> str:
    """Return where a pull goes without a FOLDER: `name-revision`, or `name` for the latest.

    Raises:
        ConfigError: the reference has no name.
    """
    from eva_dist.store.artifact_ref import parse_artifact_ref

    ref = parse_artifact_ref(source, store)
    if not ref.repo_id:
        raise ConfigError(f"SOURCE={source} has no name to call a folder after; give FOLDER")
    name = ref.repo_id.rpartition("/")[2]
    return name if ref.revision is None else f"{name}-{ref.revision}".replace("/", "-")


def check_file_names(reader: "ArtifactReader", only: Sequence[str]) -> None:
    """Raise `ConfigError` for a file that the artifact does not have; the message names the nearest one."""
    from eva_dist.artifact.listing import nearest

    files = reader.snapshot.files
    for name in only:
        if name not in files:
            near = next(nearest(name, list(files)), None)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"--only={name} must be one of {', '.join(files)}{hint}")
