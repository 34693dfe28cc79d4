"""Load an artifact: from a folder or `file://` URL to what PEFT's `initialize_lora_eva_weights` takes."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from safetensors.torch import load
from torch import Tensor

from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError

MANIFEST_FILE = "manifest.json"
_TENSOR_FILE = "eva_state_dict.safetensors"


def load_eva_state_dict(source: str | os.PathLike[str], *, prefix: str = "base_model.model.") -> dict[str, Tensor]:
    """Return layer name to float32 `[rank, in_features]`, ready for PEFT's `initialize_lora_eva_weights`.

    The dict is fresh at each call, for PEFT's loader pops from the one it is given. Rank-0
    layers are there as `[0, in_features]`: PEFT then removes the adapter from them.

    Args:
        source: folder or `file://` URL of an artifact, or of a revision in a store.
        prefix: put before each name of the base model; the default gives the names in a
            `PeftModel`, `prefix=""` those in the base model.

    Raises:
        ArtifactNotFoundError: there is no artifact at `source`.
        IntegrityError: the tensor file is missing or differs from the manifest.
        ConfigError: `source` is a URL that is not `file://`.
    """
    folder = source_folder(source)
    content = read_verified(folder, read_manifest(folder), _TENSOR_FILE)
    return {prefix + name: tensor for name, tensor in load(content).items()}


REMEDY = "copy the artifact again, or recompute it with artifact.overwrite=true"


def source_folder(source: str | os.PathLike[str]) -> Path:
    """Return the folder that a path or `file://` URL names; `ConfigError` for any other URL."""
    text = os.fspath(source)
    if "://" not in text:
        return Path(text).expanduser()
    url = urlsplit(text)
    if url.scheme != "file" or url.netloc not in ("", "localhost"):
        raise ConfigError(
            f"source={text} must be a folder or a file:///... URL: this version reads nothing else; "
            "download the artifact and give its folder"
        )
    return Path(url2pathname(url.path))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the artifact in `folder`.

    Raises:
        ArtifactNotFoundError: there is no artifact in `folder`.
        IntegrityError: its manifest is none.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactNotFoundError(
            f"no artifact at {folder}: it has no {MANIFEST_FILE}; check the path, repo_id and revision "
            "(the `url` that the run printed)"
        ) from error
    except ValueError as error:
        raise IntegrityError(f"{path} is not JSON ({error}); {REMEDY}") from error
    if not isinstance(manifest, dict):
        raise IntegrityError(f"{path} is no manifest; {REMEDY}")
    return manifest


def read_verified(folder: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of a file of an artifact, those that were hashed: nobody can swap the file in between.

    Raises:
        IntegrityError: the file is missing, differs from the manifest, or is not listed there.
    """
    path = folder / name
    try:
        expected = str(manifest["files"][name]["sha256"])
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing though the manifest lists it; {REMEDY}") from error
    except (KeyError, TypeError) as error:
        raise IntegrityError(
            f"{folder / MANIFEST_FILE} is not a manifest that lists {name} ({error!r}); {REMEDY}"
        ) from error
    _refuse_other(path, hashlib.sha256(content).hexdigest(), expected)
    return content


def verify(folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    """Refuse a file of an artifact that differs from the manifest; however large, little of it is in memory at a time.

    Raises:
        IntegrityError: it differs.
        OSError, KeyError: it is missing, or the manifest does not list it.
    """
    with (folder / name).open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    _refuse_other(folder / name, actual, manifest["files"][name]["sha256"])


def _refuse_other(path: Path, actual: str, expected: str) -> None:
    if actual != expected:
        raise IntegrityError(f"{path} has sha256 {actual}, but its manifest says {expected}; {REMEDY}")
