"""An artifact of a few bytes, in a folder."""

import hashlib
import json
from pathlib import Path

from eva_dist.store.open_artifact import fetch

FINGERPRINT = "ab" * 32


def write_artifact(folder: Path, fingerprint: str = FINGERPRINT, **files: bytes) -> Path:
    """Write a folder with a manifest that fits; `a_bin=...` is the file `a.bin`."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {name.replace("_", "."): content for name, content in files.items()} or {
        "README.md": b"# card\n",
        "weights.bin": bytes(range(256)) * 64,
        "more/of.it": b"",
    }
    listed = {n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in contents.items()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": fingerprint, "files": listed}))
    return folder


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fetched(word: str) -> dict[str, bytes]:
    """Fetch an artifact, in whatever process."""
    return contents_of(fetch(word))
