"""References to artifacts: the text by which a person names one, parsed into an `ArtifactRef`.

    path, file:///folder                              the artifact's own folder
    team/name[@revision]                              in the store of --store
    s3://bucket/prefix/team/name[@revision]           in another store: also gs, az, abfs, memory, file:///root, /root
    hf://org/name[@revision]                          on the Hub
    http(s)://host[:port][/prefix]/org/name[@revision]    on a gateway of ours, or on another Hub

A revision is a name, a commit or a fingerprint; without one, the latest (`main`) is meant. Odd characters in it are
percent-encoded (`hf://org/name@my%20run`); `refs/pr/1` is taken as it stands. `open_artifact.py` opens a reference.
"""

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from eva_dist.config import StoreConfig, is_store_url
from eva_dist.errors import ConfigError, StoreError
from eva_dist.store.name_rules import MAIN, OBJECTS, SNAPSHOTS, check_names, is_fingerprint
from eva_dist.store.snapshot import MANIFEST_FILE

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_GRAMMAR = (
    "must be a folder, file:///folder, team/name[@revision] (in the store), s3://bucket/prefix/team/name[@revision] "
    "(also gs, az, abfs, memory, file), hf://org/name[@revision] or http(s)://host/org/name[@revision]"
)


class RefKind(Enum):
    """Where a reference leads: to a plain folder, into a store, or to a Hub."""

    folder = "folder"
    store = "store"
    hub = "hub"


@dataclass(frozen=True)
class ArtifactRef:
    """A parsed reference to an artifact; nothing says yet that the artifact exists.

    Attributes:
        text: the reference, as it was given.
        kind: where it leads.
        url: a folder's path, a store's URL, or a Hub's endpoint (empty: the one of the environment).
        repo_id: `namespace/name`; empty for a folder, and for a snapshot that a store holds without a name.
        revision: name, commit or fingerprint; None is the latest one.
    """

    text: str
    kind: RefKind
    url: str
    repo_id: str = ""
    revision: str | None = None


def parse_artifact_ref(text: str | os.PathLike[str], store_url: str | None = None) -> ArtifactRef:
    """Parse a reference to an artifact. Looks at local folders, because a path may be one; contacts nothing.

    Args:
        text: see the module.
        store_url: the store in which `team/name` is looked up; None is the default store.

    Raises:
        ConfigError: it is not a reference; the message has the grammar.
    """
    text = os.fspath(text)
    scheme, found, _ = text.partition("://")
    if not found:
        return _parse_path(text, Path(text).expanduser(), StoreConfig().url if store_url is None else store_url)
    if scheme == "file":
        url = urlsplit(text)
        if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
            raise _grammar_error(text, "file:// names a folder of this machine, file:///folder")
        return _parse_path(text, Path(url2pathname(url.path)), None)
    if scheme == "hf":
        repo_id, revision = _parse_repository(text, text.removeprefix("hf://"))
        return ArtifactRef(text, RefKind.hub, "", repo_id, revision)
    if scheme in ("http", "https"):
        return _parse_hub_url(text)
    if is_store_url(text):
        return _parse_store_url(text)
    raise _grammar_error(text, f"{scheme}:// is not known")


def _parse_path(text: str, path: Path, store_url: str | None) -> ArtifactRef:
    """Parse text without a scheme: a folder, a name in `store_url`, or a name below a store's own folder.

    The order matters. A folder with a manifest is an artifact, whatever its name looks like; only then may
    `team/name` be a name in the store, and only then may the folders above the path show that they are a store.
    """
    if (path / MANIFEST_FILE).is_file():
        return ArtifactRef(text, RefKind.folder, str(path))
    name, at, revision = path.name.partition("@")
    namespace, above = path.parent.name, path.parents[1] if len(path.parents) > 1 else None
    if store_url is not None and len(path.parts) == 2 and not text.startswith(("/", ".", "~")):
        return _make_store_ref(text, store_url, namespace, name, revision if at else None)
    # `/root/team/name@revision`: nobody calls a folder so, or the root has a store's objects
    if above is not None and ((at and not path.exists()) or (above / OBJECTS).is_dir()):
        return _make_store_ref(text, str(above.absolute()), namespace, name, revision if at else None)
    # `/root/team/name/revision`, as a folder store shows it to a person; it may be gone while the store has it
    if above is not None and (above.parent / OBJECTS).is_dir() and not path.exists():
        return _make_store_ref(text, str(above.parent.absolute()), above.name, namespace, path.name)
    return ArtifactRef(text, RefKind.folder, str(path))


def _parse_store_url(text: str) -> ArtifactRef:
    """Parse `s3://bucket/prefix/team/name[@revision]`: the last two parts are the name, the rest is the store."""
    *above, namespace, last = text.split("/")
    name, at, revision = last.partition("@")
    if len(above) < 3 or not above[2]:
        raise _grammar_error(text, "a bucket, a namespace and a name are needed")
    return _make_store_ref(text, "/".join(above), namespace, name, revision if at else None)


def _make_store_ref(text: str, url: str, namespace: str, name: str, revision: str | None) -> ArtifactRef:
    """Return a reference into a store; `snapshots/<fingerprint>` names an artifact without any name."""
    if namespace == SNAPSHOTS and revision is None and is_fingerprint(name):
        return ArtifactRef(text, RefKind.store, url, "", name)
    try:
        check_names(f"{namespace}/{name}", MAIN if revision is None else revision)
    except StoreError as error:
        raise _grammar_error(text, str(error)) from error
    return ArtifactRef(text, RefKind.store, url, f"{namespace}/{name}", revision)


def _parse_hub_url(text: str) -> ArtifactRef:
    """Parse `https://host/prefix/org/name[@revision]`, or the address of a repository's page."""
    url = urlsplit(text)
    if url.username or url.password:
        shown = re.sub(r"//[^/]*@", "//", text, count=1)
        raise _grammar_error(shown, "a URL must hold no password; set EVA_DIST_TOKEN instead")
    if url.query or url.fragment or not url.hostname:
        raise _grammar_error(text, "a gateway is named by host, prefix, org/name and revision alone")
    path, at, revision = url.path.partition("@")
    copied = re.fullmatch(r"(.*/[^/]+/[^/]+)/tree/(.+)", path)  # what a person copies from the address line
    if copied and not at:
        path, at, revision = copied[1], "@", copied[2]
    if path.strip("/").count("/") < 1:
        raise _grammar_error(text, f"{path!r} is no org/name")
    *prefix, namespace, name = path.strip("/").split("/")
    repo_id, _ = _parse_repository(text, f"{namespace}/{name}")
    endpoint = "/".join([f"{url.scheme}://{url.netloc}", *prefix])
    return ArtifactRef(text, RefKind.hub, endpoint, repo_id, _parse_revision(text, revision) if at else None)


def _parse_repository(text: str, rest: str) -> tuple[str, str | None]:
    """Split `org/name[@revision]`."""
    repo_id, at, revision = rest.partition("@")
    if not _REPOSITORY.fullmatch(repo_id):
        raise _grammar_error(text, f"{repo_id!r} is no org/name")
    return repo_id, _parse_revision(text, revision) if at else None


def _parse_revision(text: str, revision: str) -> str:
    """Decode a revision of a Hub, and refuse one that would leave the repository's route."""
    plain = unquote(revision)
    if not plain or plain != plain.strip() or not plain.isprintable() or ".." in plain.split("/"):
        raise _grammar_error(text, f"the revision {plain!r} is none")
    return plain


def _grammar_error(text: str, why: str) -> ConfigError:
    return ConfigError(f"source={text}: {why}; it {_GRAMMAR}")
