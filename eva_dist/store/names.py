"""Which names may become folders of a store, and which ones artifacts get that nobody named."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eva_dist.config import Budget, EvaConfig
from eva_dist.errors import StoreError
from eva_dist.plan import fingerprint

OBJECTS = "objects"
SNAPSHOTS = "snapshots"
INCOMING = ".incoming"
CHECKPOINTS = ".checkpoints"


def default_repo_id(model: str) -> str:
    """Return `local/<last part of the model's name>`, with what is not plain in it replaced."""
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(model).name)
    return f"local/{stem.lstrip('.') or 'model'}"


def default_revision(eva: EvaConfig, decisive: Mapping[str, Any], fingerprint_of: Callable[[str], str | None]) -> str:
    """Return a revision made of what sweeps vary, e.g. `rho2.0-tau0.99-whiten-params`.

    Where another artifact (other r, targets, data) has that name, the fingerprint is added
    to it: a name that nobody asked for takes no other artifact's place.

    Args:
        eva: settings of the artifact.
        decisive: what decides the artifact's numbers.
        fingerprint_of: tells which artifact a revision is now, None if it is free.
    """
    name = f"rho{eva.rho}-tau{eva.tau}" + ("-whiten" if eva.whiten else "")
    name += "-shared" if "shared_tracker" in decisive else ""
    name += "-params" if eva.budget is Budget.params else ""
    name += "-derived" if "derived_from" in decisive else ""
    name += "-merged" if "merged_from" in decisive else ""
    own = fingerprint(decisive)
    return name if fingerprint_of(name) in (None, own) else f"{name}-{own[:8]}"


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
