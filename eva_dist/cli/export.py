"""`eva-dist export`: an adapter for engines that serve it, of mixed ranks or of one rank everywhere."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from eva_dist.artifact.file_names import CARD_FILE
from eva_dist.cli.options import STORE, AsJson, SourceArgument, StoreUrl
from eva_dist.cli.terminal import print_json, say
from eva_dist.transform.rank_choice import parse_rank_choice


def export(
    source: SourceArgument,
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
    choice = parse_rank_choice(rank)
    with contextlib.redirect_stdout(sys.stderr):
        from eva_dist.transform.export_adapter import export_adapter  # torch: seconds

        facts = export_adapter(source, store, folder, choice)
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
