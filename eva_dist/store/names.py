"""Which names may become folders of a store."""

import os
import re

from eva_dist.errors import StoreError

OBJECTS = "objects"
SNAPSHOTS = "snapshots"
INCOMING = ".incoming"
CHECKPOINTS = ".checkpoints"


def check_fingerprint(fingerprint: str) -> None:
    """Raise `StoreError` unless it is lower-case hexadecimal: it becomes a folder's name."""
    if not re.fullmatch(r"[0-9a-f]{8,128}", fingerprint):
        raise StoreError(
            f"fingerprint={fingerprint!r} must be 8 to 128 lower-case hexadecimal digits; use the one the run printed"
        )


def check_names(repo_id: str, revision: str) -> None:
    """Raise `StoreError` unless `<repo_id>/<revision>` stays inside the store and beside its own folders."""
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(_is_plain(part) for part in parts) or parts[0] in (OBJECTS, SNAPSHOTS):
        raise StoreError(
            f"artifact.repo_id={repo_id!r} must be namespace/name, each {_PLAIN}, and the namespace neither "
            f"'{OBJECTS}' nor '{SNAPSHOTS}'; e.g. team/my-model"
        )
    if not _is_plain(revision):
        raise StoreError(f"artifact.revision={revision!r} must be {_PLAIN}; e.g. rho2.0-tau0.9")


_PLAIN = "letters, digits, '-', '_', '.', not starting with a dot, at most 240 bytes"


def _is_plain(name: str) -> bool:
    """Apply the rule of `config.ArtifactConfig`, and a file system's limit: refused now, not after the work."""
    spelled = bool(name) and not name.startswith(".") and all(c.isalnum() or c in "-_." for c in name)
    return spelled and len(os.fsencode(name)) <= 240
