"""`eva-dist export`: an adapter for engines that serve it, of mixed ranks or of one rank everywhere."""

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.artifact.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CARD_FILE
from eva_dist.cli.options import STORE, AsJson, Source, StoreUrl
from eva_dist.cli.terminal import print_json, say
from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError, StoreError

if TYPE_CHECKING:
    from eva_dist.store.artifact_reader import Opened
    from eva_dist.transform.uniform_rank import Uniform

_RANKS = "mixed, pad, pad:N or fixed:N"


@dataclass(frozen=True)
class Wanted:
    """What `--rank` says: `mixed`, `pad` or `fixed`; `rank` is None where none was named."""

    kind: str
    rank: int | None = None


def export(
    source: Source,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder.", show_default=False)],
    rank: Annotated[
        str,
        typer.Option(
            metavar="mixed|pad|pad:N|fixed:N",
            help="mixed: as EVA handed them out. pad: all at the largest, or at N, with zeros; outputs stay the "
            "same. fixed:N: the first N components in every layer.",
        ),
    ] = "mixed",
    store: StoreUrl = STORE,
    as_json: AsJson = False,
) -> None:
    """Write a PEFT adapter into FOLDER, for an engine that wants one rank in all layers if need be.

    vLLM and others read r and lora_alpha alone: --rank pad gives all layers one of each. SOURCE may also be a folder
    with an adapter that was trained from an artifact: a trained adapter is what an engine serves. Prints the folder.
    """
    wanted = parse_rank(rank)
    with contextlib.redirect_stdout(sys.stderr):
        facts = _export(source, store, folder, wanted)
    if as_json:
        print_json(facts)
        return
    say(f"{facts['ranks']}: r={facts['r']}, lora_alpha={facts['lora_alpha']}, largest rank {facts['largest_rank']}")
    if facts["layers_rescaled"] or facts["layers_added"]:
        say(
            f"{facts['layers_rescaled']} layers with another scale have it in their A now, {facts['layers_added']} "
            f"without an adapter got one that is zero: see {folder / CARD_FILE}"
        )
    print(folder)


def parse_rank(text: str) -> Wanted:
    """Return what `--rank` says; `ConfigError` if it says nothing of ours."""
    kind, colon, number = text.partition(":")
    if kind in ("mixed", "pad") and not colon:
        return Wanted(kind)
    if kind in ("pad", "fixed") and number.isdecimal() and 0 < int(number) < 1 << 20:
        return Wanted(kind, int(number))
    hint = f"; did you mean pad:{text} or fixed:{text}?" if text.isdecimal() else ""
    raise ConfigError(f"--rank={text} must be {_RANKS}, N a number above 0{hint}")


@dataclass(frozen=True)
class _Given:
    """What is exported: an adapter, and the artifact that it is of, if it is one's own."""

    where: str
    config: dict[str, Any]
    content: bytes
    opened: "Opened | None"

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """The artifact's."""
        return None if self.opened is None else self.opened.snapshot.manifest


def _export(source: str, store: str, folder: Path, wanted: Wanted) -> dict[str, Any]:
    from eva_dist.transform.export_card import export_card

    _refuse_full(folder)
    given = _read(source, store)
    made = None if wanted.kind == "mixed" else _uniform(given, source, wanted)
    tensors_file = given.content if made is None else _save(made)
    config = given.config if made is None else made.config
    facts = _facts(source, folder, given, wanted, made)
    with _new_folder(folder) as new:
        (new / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (new / ADAPTER_FILE).write_bytes(tensors_file)
        (new / CARD_FILE).write_text(export_card(config, facts, made), encoding="utf-8")
    return facts


def _read(source: str, store: str) -> _Given:
    """Read an artifact's adapter, or one that lies in a folder without a manifest.

    Raises:
        ArtifactNotFoundError: there is neither.
    """
    from eva_dist.store.artifact_ref import open_source

    plain = Path(source).expanduser()
    try:
        opened = open_source(source, store)
    except ArtifactNotFoundError as error:
        if not (plain / ADAPTER_CONFIG_FILE).is_file():
            raise
        try:
            content = (plain / ADAPTER_FILE).read_bytes()
            return _Given(str(plain), _config((plain / ADAPTER_CONFIG_FILE).read_bytes(), plain), content, None)
        except OSError as wrong:
            raise StoreError(f"{plain} cannot be read: {wrong.strerror}; save the adapter as safetensors") from error
    config = _config(opened.read(ADAPTER_CONFIG_FILE), opened.where)
    return _Given(opened.where, config, opened.read(ADAPTER_FILE), opened)


def _config(content: bytes, where: object) -> dict[str, Any]:
    from eva_dist.transform.uniform_rank import check_adapter_config

    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{ADAPTER_CONFIG_FILE} of {where} is not JSON ({error}); get it again") from error
    if not isinstance(config, dict):
        raise IntegrityError(f"{ADAPTER_CONFIG_FILE} of {where} is no mapping; get it again")
    check_adapter_config(config, where)
    return config


def _uniform(given: _Given, source: str, wanted: Wanted) -> "Uniform":
    from safetensors import SafetensorError
    from safetensors.torch import load

    from eva_dist.artifact.layer_table import described_layers
    from eva_dist.artifact.restore import restore_artifact
    from eva_dist.transform.uniform_rank import fixed, padded, read_adapter

    if wanted.kind == "fixed":
        if given.opened is None:
            raise ConfigError(
                f"--rank fixed:{wanted.rank} needs an artifact, which holds components; {source} is an adapter alone: "
                "use --rank pad"
            )
        assert wanted.rank is not None
        return fixed(restore_artifact(given.opened.fetch(), given.opened.snapshot), given.config, wanted.rank)
    try:
        tensors = load(given.content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(
            f"{ADAPTER_FILE} of {given.where} is no safetensors file ({error}); get it again"
        ) from error
    layers = described_layers(given.manifest) if given.manifest else ()
    bare = {layer.name: (layer.in_features, layer.out_features) for layer in layers if layer.rank == 0}
    return padded(read_adapter(given.config, tensors), wanted.rank, bare)


def _save(made: "Uniform") -> bytes:
    from safetensors.torch import save

    return save(made.tensors, metadata={"format": "pt"})


def _facts(source: str, folder: Path, given: _Given, wanted: Wanted, made: "Uniform | None") -> dict[str, Any]:
    """Return what is printed, and what the card says."""
    from eva_dist import __version__

    config = given.config if made is None else made.config
    patterned = [r for r in (config.get("rank_pattern") or {}).values() if isinstance(r, int)]
    ranks = "mixed ranks, as EVA handed them out" if made is None else f"rank {made.rank} in every layer"
    return {
        "folder": str(folder),
        "source": source,
        "fingerprint": None if given.manifest is None else str(given.manifest.get("fingerprint")),
        "rank_option": wanted.kind if wanted.rank is None else f"{wanted.kind}:{wanted.rank}",
        "ranks": ranks,
        "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "largest_rank": max([config.get("r") or 0, *patterned]) if made is None else made.rank,
        "layers_rescaled": 0 if made is None else len(made.folded),
        "layers_added": 0 if made is None else len(made.added),
        "eva_dist": __version__,
    }


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"FOLDER={folder} is there and not empty; name a new one, or remove it")


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes `folder` by one rename, or goes away."""
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
