"""`eva-dist pull` and `push`: artifacts into a folder, and into a store or onto the Hub."""

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, Source, StoreUrl
from eva_dist.cli.terminal import print_json, say, size_text
from eva_dist.errors import ConfigError, IntegrityError, StoreError

if TYPE_CHECKING:
    from eva_dist.store.artifact_reader import Opened
    from eva_dist.store.snapshot import FileEntry

_PART_BYTES = 8 << 20
_HUBS = ("hf://", "https://", "http://")
_UNFINISHED = ".incomplete"


def pull(
    source: Source,
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
    from eva_dist.store.artifact_ref import open_source

    opened = open_source(source, store)
    target = folder or Path(default_folder(source, store))
    pulled = bring(opened, target, only)
    say(
        f"{pulled.files} files, {size_text(pulled.size)}: {size_text(pulled.size - pulled.kept)} downloaded, "
        f"{size_text(pulled.kept)} were there; every sha256 is right"
    )
    if as_json:
        facts = {"files": pulled.files, "bytes": pulled.size, "kept_bytes": pulled.kept}
        print_json({"folder": str(target), "source": source, "fingerprint": opened.snapshot.fingerprint, **facts})
    else:
        print(target)


def push(
    source: Source,
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
    from eva_dist.store.artifact_ref import fetch

    with contextlib.redirect_stdout(sys.stderr):
        if target.startswith(_HUBS):
            facts = _to_hub(source, store, target, private, base_model)
        else:
            url, repo_id, revision = place(target, store)
            facts = _to_store(fetch(source, store_url=store), url, repo_id, revision, force)
    if as_json:
        print_json(facts)
    else:
        print(facts["url"])


@dataclass(frozen=True)
class Pulled:
    """What a pull did: files and bytes of them that are in the folder now, and bytes that had been there."""

    files: int
    size: int
    kept: int


def bring(opened: "Opened", folder: Path, only: Sequence[str] | None = None) -> Pulled:
    """Download files of an artifact, all or those named, into a folder that is its own.

    Raises:
        ConfigError: a name that the artifact does not have, or a folder that holds something else.
        IntegrityError: what came differs from the manifest; files that were right stay.
        StoreError: the place cannot be reached, or the folder cannot be written.
    """
    from eva_dist.store.progress_bar import counting
    from eva_dist.store.snapshot import MANIFEST_FILE

    entries = _chosen(opened, only)
    _refuse_foreign(folder, opened)
    size = sum(entry.size for entry in entries)
    kept = 0
    with counting(f"pulling {opened.where}", size, None) as arrived, _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # First the manifest: it says whose folder this is when the pull is taken up again.
        for entry in sorted(entries, key=lambda entry: entry.path != MANIFEST_FILE):
            if _is_right(folder / entry.path, entry):
                kept += entry.size
                arrived(entry.size)
            else:
                _download(opened, entry, folder / entry.path, arrived)
    return Pulled(len(entries), size, kept)


def default_folder(source: str, store: str) -> str:
    """Return where a pull goes without a FOLDER: `name-revision`, or `name` for the latest.

    Raises:
        ConfigError: the source has no name.
    """
    from eva_dist.store.artifact_ref import parse_source

    parsed = parse_source(source, store)
    if not parsed.repo_id:
        raise ConfigError(f"SOURCE={source} has no name to call a folder after; give FOLDER")
    name = parsed.repo_id.rpartition("/")[2]
    return name if parsed.revision is None else f"{name}-{parsed.revision}".replace("/", "-")


def place(target: str, store: str) -> tuple[str, str, str | None]:
    """Return store, repo_id and revision (None: not said) that TARGET names.

    Raises:
        ConfigError: it names no place in a store.
    """
    from eva_dist.store.artifact_ref import Kind, parse_source
    from eva_dist.store.names import check_names

    if "://" not in target:
        repo_id, at, revision = target.partition("@")
        try:
            check_names(repo_id, revision if at else "main")
        except StoreError as error:
            raise ConfigError(
                f"TARGET={target} must be team/name[@revision], s3://bucket/prefix/team/name[@revision] or "
                "hf://org/name[@revision]"
            ) from error
        return store, repo_id, revision if at else None
    parsed = parse_source(target, store)
    if parsed.kind is not Kind.store or not parsed.repo_id:
        raise ConfigError(
            f"TARGET={target} must name a place in a store, e.g. s3://bucket/prefix/team/name@revision or "
            f"file:///folder/team/name@revision; or on the Hub: hf://org/name"
        )
    return parsed.url, parsed.repo_id, parsed.revision


def _to_store(folder: Path, url: str, repo_id: str, revision: str | None, force: bool) -> dict[str, Any]:
    from eva_dist.store.names import check_names
    from eva_dist.store.snapshot import folder_snapshot
    from eva_dist.store.store import Store

    snapshot, opened = folder_snapshot(folder), Store(url)
    revision = revision or str(snapshot.manifest.get("revision", ""))
    try:
        check_names(repo_id, revision)
    except StoreError as error:
        raise ConfigError(
            f"the artifact says no revision of its own that could be used; give {repo_id}@revision"
        ) from error
    before = opened.fingerprint_of(repo_id, revision)
    moved = before if before not in (None, snapshot.fingerprint) else None
    if moved and not force:
        raise ConfigError(
            f"{repo_id}@{revision} in {url} is another artifact, {moved[:12]}; choose another revision, or give "
            "--force to let the name be this one's"
        )
    published = opened.publish_folder(folder, repo_id, revision, overwrite=force)
    say(f"{repo_id}@{revision} is {published.fingerprint[:12]} now" + (f", it was {moved[:12]}" if moved else ""))
    facts = {"url": published.url, "store": url, "repo_id": repo_id, "revision": revision}
    return {**facts, "fingerprint": published.fingerprint, "moved_from": moved}


def _to_hub(source: str, store: str, target: str, private: bool, base_model: str | None) -> dict[str, Any]:
    from eva_dist.store.artifact_ref import parse_source
    from eva_dist.transform.push_to_hub import push_to_hub

    parsed = parse_source(target)
    url = push_to_hub(
        source,
        parsed.repo_id,
        revision=parsed.revision,
        base_model=base_model,
        private=private or None,
        endpoint=parsed.url or None,
        store_url=store,
    )
    return {"url": url, "repo_id": parsed.repo_id, "revision": parsed.revision}


def _chosen(opened: "Opened", only: Sequence[str] | None) -> "list[FileEntry]":
    """Return the files to bring, the manifest always among them."""
    from eva_dist.artifact.listing import nearest
    from eva_dist.store.snapshot import MANIFEST_FILE

    files = opened.snapshot.files
    for name in only or ():
        if name not in files:
            near = next(nearest(name, list(files)), None)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"--only={name} must be one of {', '.join(files)}{hint}")
    return [entry for name, entry in files.items() if not only or name in {*only, MANIFEST_FILE}]


def _refuse_foreign(folder: Path, opened: "Opened") -> None:
    """Raise unless the folder is new, empty, or this artifact's: what is someone else's is not written over."""
    from eva_dist.store.snapshot import MANIFEST_FILE

    with _written(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise ConfigError(f"FOLDER={folder} is a file; name a folder")
        manifest = folder / MANIFEST_FILE
        if manifest.is_file() and manifest.read_bytes() == opened.snapshot.content:
            return
        if manifest.exists() or any(not entry.name.endswith(_UNFINISHED) for entry in folder.iterdir()):
            holds = "another artifact" if manifest.exists() else "other files"
            raise ConfigError(f"FOLDER={folder} holds {holds}; name a new folder, or remove it")


def _download(opened: "Opened", entry: "FileEntry", target: Path, arrived: Callable[[int], None]) -> None:
    """Write one file, verified, by one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}{_UNFINISHED}")
    digest = hashlib.sha256()
    try:
        with new.open("wb") as file:
            for part in _parts(opened, entry):
                digest.update(part)
                file.write(part)
                arrived(len(part))
        if digest.hexdigest() != entry.sha256:
            raise IntegrityError(
                f"{entry.path} of {opened.where} has sha256 {digest.hexdigest()}, but its manifest says "
                f"{entry.sha256}; pull again; if it stays so, ask who published it to do so again"
            )
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def _parts(opened: "Opened", entry: "FileEntry") -> Iterator[bytes]:
    from eva_dist.store.artifact_reader import NoRangesError
    from eva_dist.store.snapshot import MANIFEST_FILE

    if entry.path == MANIFEST_FILE:
        yield opened.snapshot.content
        return
    at = 0
    try:
        while at < entry.size:
            end = min(at + _PART_BYTES, entry.size)
            yield opened.read_range(entry.path, at, end)
            at = end
    except NoRangesError:  # whole files alone: they go over the cache
        with (opened.fetch([entry.path], False) / entry.path).open("rb") as file:
            file.seek(at)
            while part := file.read(_PART_BYTES):
                yield part


def _is_right(path: Path, entry: "FileEntry") -> bool:
    from eva_dist.hashing import sha256_of_file

    return path.is_file() and path.stat().st_size == entry.size and sha256_of_file(path) == entry.sha256


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error.strerror or error}; make room or grant the rights, and pull again"
        ) from error
