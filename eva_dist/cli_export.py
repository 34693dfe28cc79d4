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
from eva_dist.cli_options import STORE, AsJson, Source, StoreUrl
from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError, StoreError
from eva_dist.terminal import facts_table, print_json, put, say
from eva_dist.terminal import stdout as results

if TYPE_CHECKING:
    from eva_dist.artifact.export import Uniform

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
            help="mixed: as EVA handed them out. pad: all at the largest, or at N, with zeros; outputs and training "
            "stay the same. fixed:N: the first N components in every layer.",
        ),
    ] = "mixed",
    store: StoreUrl = STORE,
    as_json: AsJson = False,
) -> None:
    """Write a PEFT adapter into FOLDER, for an engine that wants one rank in all layers if need be.

    vLLM and others read r and lora_alpha alone: --rank pad gives all layers one of each. SOURCE may also be a folder
    with an adapter that was trained from an artifact: a trained adapter is what an engine serves.
    """
    wanted = parse_rank(rank)
    with contextlib.redirect_stdout(sys.stderr):
        facts = _export(source, store, folder, wanted)
    if as_json:
        print_json(facts)
        return
    put(results(), facts_table({key.replace("_", " "): value for key, value in facts.items()}))


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
    manifest: Mapping[str, Any] | None


def _export(source: str, store: str, folder: Path, wanted: Wanted) -> dict[str, Any]:
    given = _read(source, store)
    _refuse_full(folder)
    made = None if wanted.kind == "mixed" else _uniform(given, source, store, wanted)
    tensors_file = given.content if made is None else _save(made)
    config = given.config if made is None else made.config
    facts = _facts(source, folder, given, wanted, made)
    with _new_folder(folder) as new:
        (new / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (new / ADAPTER_FILE).write_bytes(tensors_file)
        (new / CARD_FILE).write_text(_card(given, facts, made, wanted), encoding="utf-8")
    return facts
