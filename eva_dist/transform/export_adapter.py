"""Export an adapter into a folder for an engine that serves it, of mixed ranks or of one rank everywhere."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from eva_dist import __version__
from eva_dist.artifact.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CARD_FILE
from eva_dist.artifact.layer_table import described_layers
from eva_dist.artifact.restore import restore_artifact
from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError, StoreError
from eva_dist.store.artifact_reader import ArtifactReader
from eva_dist.store.open_artifact import open_artifact
from eva_dist.transform.export_card import export_card
from eva_dist.transform.rank_choice import RankChoice
from eva_dist.transform.uniform_rank import Uniform, check_adapter_config, fixed, padded, read_adapter


@dataclass(frozen=True)
class _AdapterFiles:
    """The adapter to export, and the artifact that it belongs to; None for an adapter in a folder of its own."""

    where: str
    config: dict[str, Any]
    content: bytes
    artifact: ArtifactReader | None

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """The artifact's."""
        return None if self.artifact is None else self.artifact.snapshot.manifest


def export_adapter(source: str, store_url: str, folder: Path, choice: RankChoice) -> dict[str, Any]:
    """Write `adapter_config.json`, `adapter_model.safetensors` and a card into a new folder; return its facts.

    Args:
        source: a reference to an artifact, or a folder with an adapter that was trained from one.
        store_url: the store of a `source` that is a name alone.
        folder: new or empty; it appears whole, by one rename.
        choice: which ranks.

    Raises:
        ConfigError: the folder is not empty, or the ranks cannot be had of this adapter.
        ArtifactNotFoundError: there is neither an artifact nor an adapter.
        IntegrityError: a file of the adapter is not one.
        StoreError: the artifact cannot be reached, or the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"FOLDER={folder} is there and not empty; name a new one, or remove it")
    given = _read_adapter_files(source, store_url)
    uniform = None if choice.kind == "mixed" else _make_uniform(given, source, choice)
    content = given.content if uniform is None else save(uniform.tensors, metadata={"format": "pt"})
    config = given.config if uniform is None else uniform.config
    facts = _export_facts(source, folder, given, choice, uniform)
    with _new_folder(folder) as new:
        (new / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (new / ADAPTER_FILE).write_bytes(content)
        (new / CARD_FILE).write_text(export_card(config, facts, uniform), encoding="utf-8")
    return facts


def _read_adapter_files(source: str, store_url: str) -> _AdapterFiles:
    """Read an artifact's adapter, or one that lies in a folder without a manifest."""
    plain = Path(source).expanduser()
    try:
        artifact = open_artifact(source, store_url)
    except ArtifactNotFoundError:
        if not (plain / ADAPTER_CONFIG_FILE).is_file():
            raise
        try:
            content = (plain / ADAPTER_FILE).read_bytes()
            config = _parse_adapter_config((plain / ADAPTER_CONFIG_FILE).read_bytes(), plain)
        except OSError as error:
            raise StoreError(f"{plain} cannot be read: {error.strerror}; save the adapter as safetensors") from error
        return _AdapterFiles(str(plain), config, content, None)
    config = _parse_adapter_config(artifact.read(ADAPTER_CONFIG_FILE), artifact.where)
    return _AdapterFiles(artifact.where, config, artifact.read(ADAPTER_FILE), artifact)


def _parse_adapter_config(content: bytes, where: object) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{ADAPTER_CONFIG_FILE} of {where} is not JSON ({error}); get it again") from error
    if not isinstance(config, dict):
        raise IntegrityError(f"{ADAPTER_CONFIG_FILE} of {where} is no mapping; get it again")
    check_adapter_config(config, where)
    return config


def _make_uniform(given: _AdapterFiles, source: str, choice: RankChoice) -> Uniform:
    """Bring all layers to one rank: by padding what is there, or by the stored components of an artifact."""
    if choice.kind == "fixed":
        if given.artifact is None:
            raise ConfigError(
                f"--rank fixed:{choice.rank} needs an artifact, which holds components; {source} is an adapter alone: "
                "use --rank pad"
            )
        assert choice.rank is not None
        stored = restore_artifact(given.artifact.fetch(), given.artifact.snapshot)
        return fixed(stored, given.config, choice.rank)
    try:
        tensors = load(given.content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(
            f"{ADAPTER_FILE} of {given.where} is no safetensors file ({error}); get it again"
        ) from error
    layers = described_layers(given.manifest) if given.manifest else ()
    # Layers of rank 0 carry no adapter; engines that want one rank get a zero one there.
    bare = {layer.name: (layer.in_features, layer.out_features) for layer in layers if layer.rank == 0}
    return padded(read_adapter(given.config, tensors), choice.rank, bare)


def _export_facts(
    source: str, folder: Path, given: _AdapterFiles, choice: RankChoice, uniform: Uniform | None
) -> dict[str, Any]:
    """Return what the command prints, and what the card says."""
    config = given.config if uniform is None else uniform.config
    patterned = [r for r in (config.get("rank_pattern") or {}).values() if isinstance(r, int)]
    ranks = "mixed ranks, as EVA handed them out" if uniform is None else f"rank {uniform.rank} in every layer"
    return {
        "folder": str(folder),
        "source": source,
        "fingerprint": None if given.manifest is None else str(given.manifest.get("fingerprint")),
        "rank_option": choice.kind if choice.rank is None else f"{choice.kind}:{choice.rank}",
        "ranks": ranks,
        "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "largest_rank": max([config.get("r") or 0, *patterned]) if uniform is None else uniform.rank,
        "layers_rescaled": 0 if uniform is None else len(uniform.folded),
        "layers_added": 0 if uniform is None else len(uniform.added),
        "eva_dist": __version__,
    }


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes `folder` by one rename, or is removed if the writing fails."""
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        new = folder.absolute().parent / f".{folder.name}-{secrets.token_hex(4)}.incomplete"
        new.mkdir()
        try:
            yield new
            os.rename(new, folder)  # onto an empty folder, or none
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error.strerror}; make room or grant the rights there"
        ) from error
