"""Which names the store accepts: fingerprints, repository names and revisions, and the folders that are its own."""

import os
import re

from eva_dist.config import is_plain_name
from eva_dist.errors import StoreError

OBJECTS = "objects"
SNAPSHOTS = "snapshots"
INCOMING = ".incoming"
CHECKPOINTS = ".checkpoints"
MAIN = "main"
"""The revision that is meant where none is said."""

FINGERPRINT_PATTERN = "[0-9a-f]{8,128}"
_COMMIT_OR_FINGERPRINT = re.compile(r"[0-9a-f]{40,128}")
_PLAIN_NAME = "letters, digits, '-', '_', '.', not starting with a dot, at most 240 bytes"


def is_fingerprint(text: str) -> bool:
    """Tell whether a text is spelled as a fingerprint: 8 to 128 lower-case hexadecimal digits."""
    return re.fullmatch(FINGERPRINT_PATTERN, text) is not None


def is_commit_or_fingerprint(revision: str) -> bool:
    """Tell whether a revision is spelled as a commit or a whole fingerprint; shorter hexadecimal text may be a name."""
    return _COMMIT_OR_FINGERPRINT.fullmatch(revision) is not None


def check_fingerprint(fingerprint: str) -> None:
    """Raise `StoreError` unless it is lower-case hexadecimal: it becomes a folder's name."""
    if not is_fingerprint(fingerprint):
        raise StoreError(
            f"fingerprint={fingerprint!r} must be 8 to 128 lower-case hexadecimal digits; use the one the run printed"
        )


def check_names(repo_id: str, revision: str) -> None:
    """Raise `StoreError` unless `<repo_id>/<revision>` stays inside the store and beside its own folders."""
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(_is_file_name(part) for part in parts) or parts[0] in (OBJECTS, SNAPSHOTS):
        raise StoreError(
            f"artifact.repo_id={repo_id!r} must be namespace/name, each {_PLAIN_NAME}, and the namespace neither "
            f"'{OBJECTS}' nor '{SNAPSHOTS}'; e.g. team/my-model"
        )
    if not _is_file_name(revision):
        raise StoreError(f"artifact.revision={revision!r} must be {_PLAIN_NAME}; e.g. rho2.0-tau0.9")


def _is_file_name(name: str) -> bool:
    """Apply the rule of `config.ArtifactConfig`, and a file system's limit: refused now, not after the work."""
    return is_plain_name(name) and len(os.fsencode(name)) <= 240
