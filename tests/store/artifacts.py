"""Small artifacts for stores: a manifest and two files, one in a folder."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eva_dist.store.store import Store

ONE, TWO = "1" * 64, "2" * 64
FILES = ("eva_state_dict.safetensors", "plots/ranks.png")


def described(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def builder(text: str = "tensors", fingerprint: str | None = None) -> Callable[[Path], dict[str, Any]]:
    """Return a `build` that writes the files and a manifest; `text` is in one of them and in the manifest."""

    def build(folder: Path) -> dict[str, Any]:
        assert list(folder.iterdir()) == []
        (folder / "plots").mkdir()
        contents = dict(zip(FILES, (text, "png"), strict=True))
        for name, content in contents.items():
            (folder / name).write_text(content)
        manifest = {"text": text, "files": {name: described(content.encode()) for name, content in contents.items()}}
        manifest |= {"fingerprint": fingerprint} if fingerprint else {}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return manifest

    return build


def refuse_to_build(folder: Path) -> dict[str, Any]:
    raise AssertionError("built although it was there")


def write_artifact(folder: Path, text: str = "tensors", fingerprint: str = ONE) -> Path:
    folder.mkdir(parents=True)
    builder(text, fingerprint)(folder)
    return folder


def content_of(store: Store, repo_id: str, revision: str | None = None) -> str:
    """What a reader gets of the first file under a name."""
    snapshot = store.snapshot(store.resolve(repo_id, revision).fingerprint)
    return store.read(snapshot.entry(FILES[0])).decode()


def names(store: Store) -> list[str]:
    return [f"{one.repo_id}@{one.revision}" for one in store.revisions()]
