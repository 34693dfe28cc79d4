"""The words that name an artifact, wherever it lies, and how to open it.

    path, file:///folder                              the artifact's own folder
    team/name[@revision]                              in the store of --store
    s3://bucket/prefix/team/name[@revision]           in another store: also gs, az, abfs, memory, file:///root, /root
    hf://org/name[@revision]                          on the Hub
    http(s)://host[:port][/prefix]/org/name[@revision]    on a gateway of ours, or on another Hub

A revision is a name, a commit or a fingerprint; none is the latest one (`main`). What is odd in it is
percent-encoded (`hf://org/name@my%20run`); `refs/pr/1` is taken as it stands.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from eva_dist.config import StoreConfig, is_store_url
from eva_dist.errors import ConfigError, StoreError
from eva_dist.store.artifact_reader import Opened, OpenedFolder
from eva_dist.store.cache import Cache
from eva_dist.store.names import OBJECTS, SNAPSHOTS, check_names
from eva_dist.store.progress_bar import Progress
from eva_dist.store.snapshot import MANIFEST_FILE, folder_snapshot

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FINGERPRINT = re.compile(r"[0-9a-f]{8,128}")
_GRAMMAR = (
    "must be a folder, file:///folder, team/name[@revision] (in the store), s3://bucket/prefix/team/name[@revision] "
    "(also gs, az, abfs, memory, file), hf://org/name[@revision] or http(s)://host/org/name[@revision]"
)


class Kind(Enum):
    """How a source is reached."""

    folder = "folder"
    store = "store"
    hub = "hub"


@dataclass(frozen=True)
class Source:
    """What a word for an artifact says.

    Attributes:
        text: the word, as it was given.
        kind: how it is reached.
        url: of a folder its path, of a store its URL, of a Hub its endpoint (empty: the one of the environment).
        repo_id: `namespace/name`; empty for a folder, and for a snapshot that a store holds without a name.
        revision: name, commit or fingerprint; None is the latest one.
    """

    text: str
    kind: Kind
    url: str
    repo_id: str = ""
    revision: str | None = None


def parse_source(text: str | os.PathLike[str], store_url: str | None = None) -> Source:
    """Return what a word for an artifact says; looks at local folders, and at nothing else.

    Args:
        text: see the module.
        store_url: the store of names without one; None is the default store.

    Raises:
        ConfigError: it is none; the message has the grammar.
    """
    text = os.fspath(text)
    scheme, found, _ = text.partition("://")
    if not found:
        return _local(text, Path(text).expanduser(), StoreConfig().url if store_url is None else store_url)
    if scheme == "file":
        url = urlsplit(text)
        if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
            raise _wrong(text, "file:// names a folder of this machine, file:///folder")
        return _local(text, Path(url2pathname(url.path)), None)
    if scheme == "hf":
        repo_id, revision = _repository(text, text.removeprefix("hf://"))
        return Source(text, Kind.hub, "", repo_id, revision)
    if scheme in ("http", "https"):
        return _web(text)
    if is_store_url(text):
        return _in_store(text)
    raise _wrong(text, f"{scheme}:// is not known")


def open_source(source: str | os.PathLike[str] | Source, store_url: str | None = None) -> Opened:
    """Return an artifact with its manifest read and checked, and none of its files.

    Raises:
        ConfigError: see `parse_source`.
        ArtifactNotFoundError: there is no artifact.
        IntegrityError: its manifest is none.
        StoreError: the place cannot be reached, or refuses.
    """
    if not isinstance(source, Source):
        source = parse_source(source, store_url)
    if source.kind is Kind.folder:
        folder = Path(source.url)
        return OpenedFolder(folder, folder_snapshot(folder))
    cache = Cache()
    if source.kind is Kind.hub:
        from eva_dist.store.hub_source import open_hub

        return open_hub(source.url, source.repo_id, source.revision, source.text, cache)
    from eva_dist.store.store_source import open_store

    return open_store(source.url, source.repo_id, source.revision, cache)


def fetch(
    source: str | os.PathLike[str] | Source,
    *,
    store_url: str | None = None,
    names: Collection[str] | None = None,
    progress: Progress = None,
) -> Path:
    """Return a local folder that holds an artifact, verified: its own where it has one, else in the cache.

    Args:
        source: see the module.
        store_url: see `parse_source`.
        names: only these files are sure to be there; None: all.
        progress: is told of bytes as they arrive; None: a bar where standard error is a terminal, False: none.

    Raises:
        IntegrityError: a file is missing or differs from the manifest.
        ConfigError, ArtifactNotFoundError, StoreError: see `open_source`.
    """
    return open_source(source, store_url).fetch(names, progress)


def _local(text: str, path: Path, store_url: str | None) -> Source:
    """Return a folder, or what a store holds: of this machine (`/root/team/name@revision`), or of `store_url`."""
    if (path / MANIFEST_FILE).is_file():
        return Source(text, Kind.folder, str(path))
    name, at, revision = path.name.partition("@")
    namespace, above = path.parent.name, path.parents[1] if len(path.parents) > 1 else None
    if store_url is not None and len(path.parts) == 2 and not text.startswith(("/", ".", "~")):
        return _stored(text, store_url, namespace, name, revision if at else None)
    if above is not None and ((at and not path.exists()) or (above / OBJECTS).is_dir()):
        return _stored(text, str(above.absolute()), namespace, name, revision if at else None)
    if above is not None and (above.parent / OBJECTS).is_dir() and not path.exists():
        # a revision, as a store shows it
        return _stored(text, str(above.parent.absolute()), above.name, namespace, path.name)
    return Source(text, Kind.folder, str(path))


def _in_store(text: str) -> Source:
    *above, namespace, last = text.split("/")
    name, at, revision = last.partition("@")
    if len(above) < 3 or not above[2]:
        raise _wrong(text, "a bucket, a namespace and a name are needed")
    return _stored(text, "/".join(above), namespace, name, revision if at else None)


def _stored(text: str, url: str, namespace: str, name: str, revision: str | None) -> Source:
    if namespace == SNAPSHOTS and revision is None and _FINGERPRINT.fullmatch(name):
        return Source(text, Kind.store, url, "", name)
    try:
        check_names(f"{namespace}/{name}", "main" if revision is None else revision)
    except StoreError as error:
        raise _wrong(text, str(error)) from error
    return Source(text, Kind.store, url, f"{namespace}/{name}", revision)


def _web(text: str) -> Source:
    url = urlsplit(text)
    if url.username or url.password:
        raise _wrong(_without_password(text), "a URL must hold no password; set EVA_DIST_TOKEN instead")
    if url.query or url.fragment or not url.hostname:
        raise _wrong(text, "a gateway is named by host, prefix, org/name and revision alone")
    path, at, revision = url.path.partition("@")
    shown = re.fullmatch(r"(.*/[^/]+/[^/]+)/tree/(.+)", path)  # what a person copies from the address line
    if shown and not at:
        path, at, revision = shown[1], "@", shown[2]
    if path.strip("/").count("/") < 1:
        raise _wrong(text, f"{path!r} is no org/name")
    *prefix, namespace, name = path.strip("/").split("/")
    repo_id, _ = _repository(text, f"{namespace}/{name}")
    endpoint = "/".join([f"{url.scheme}://{url.netloc}", *prefix])
    return Source(text, Kind.hub, endpoint, repo_id, _revision(text, revision) if at else None)


def _repository(text: str, rest: str) -> tuple[str, str | None]:
    repo_id, at, revision = rest.partition("@")
    if not _REPOSITORY.fullmatch(repo_id):
        raise _wrong(text, f"{repo_id!r} is no org/name")
    return repo_id, _revision(text, revision) if at else None


def _revision(text: str, revision: str) -> str:
    plain = unquote(revision)
    if not plain or plain != plain.strip() or not plain.isprintable() or ".." in plain.split("/"):
        raise _wrong(text, f"the revision {plain!r} is none")
    return plain


def _without_password(text: str) -> str:
    return re.sub(r"//[^/]*@", "//", text, count=1)


def _wrong(text: str, why: str) -> ConfigError:
    return ConfigError(f"source={text}: {why}; it {_GRAMMAR}")
