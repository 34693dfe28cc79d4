"""`eva-dist diff`: settings, ranks and subspaces in which two artifacts differ."""

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, StoreUrl
from eva_dist.cli.terminal import Column, cell, fitting_table, print_json, print_parts, results_console, say
from eva_dist.render.words import overlap, share

if TYPE_CHECKING:
    from rich.console import Console

    from eva_dist.store.artifact_reader import ArtifactReader
    from eva_dist.transform.compare import ArtifactComparison

_MOST_LAYERS = 20
_KIND_COLUMNS = (
    Column("module kind", lambda item: item[0]),
    Column("layers", lambda item: len(item[1].both), right=True),
    Column("ranks of A", lambda item: f"{sum(pair.rank_a for pair in item[1].both):,}", right=True),
    Column("ranks of B", lambda item: f"{sum(pair.rank_b for pair in item[1].both):,}", right=True),
    Column("equal", lambda item: share(item[1].equal_ranks / len(item[1].both), 0), right=True, drop=2),
    Column("overlap", lambda item: overlap(item[1].overlap), right=True),
    Column("largest angle", lambda item: angle_text(item[1].largest_deg), right=True, drop=1),
)
_LAYER_COLUMNS = (
    Column("layer", lambda pair: pair.name),
    Column("rank A", lambda pair: pair.rank_a, right=True),
    Column("rank B", lambda pair: pair.rank_b, right=True),
    Column("overlap", lambda pair: overlap(pair.angles and pair.angles.overlap), right=True),
    Column("largest angle", lambda pair: angle_text(pair.angles and pair.angles.largest_deg), right=True, drop=1),
)

Artifact = Annotated[
    str, typer.Argument(help="Artifact; as for `show`.", autocompletion=complete_names, show_default=False)
]


def diff(
    a: Artifact,
    b: Artifact,
    store: StoreUrl = STORE,
    every: Annotated[bool, typer.Option("--layers", help="List every layer, not the most different ones.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two artifacts: settings that differ, ranks, and the angles between their subspaces, layer by layer.

    Overlap is the mean squared cosine of the principal angles between the spaces that the rows of two layers span:
    1 where one lies in the other, near 0 for unrelated ones. Order, sign, scale and rotation of rows do not count.
    Exit code 0 whether they differ or not.
    """
    from eva_dist.report.differing_settings import differing_settings
    from eva_dist.store.open_artifact import open_artifact
    from eva_dist.transform.compare_artifacts import compare_artifacts

    opened = open_artifact(a, store), open_artifact(b, store)
    compared = compare_artifacts(*opened)
    settings = differing_settings(*(one.snapshot.manifest for one in opened))
    if as_json:
        print_json(comparison_document((a, b), opened, settings, compared))
        return
    print_comparison((a, b), settings, compared, every)


def print_comparison(
    words: tuple[str, str], settings: dict[str, Any], found: "ArtifactComparison", every: bool
) -> None:
    """Print settings that differ, totals, ranks by module kind, and the layers that differ most, or every layer."""
    from eva_dist.transform.compare_artifacts import compare_kinds, most_different

    console = results_console()
    print_parts(console, cell(f"A  {words[0]}"), cell(f"B  {words[1]}"), "")
    if not settings:
        print_parts(console, cell("settings: the same"))
    else:
        columns = (
            Column("differs", lambda item: item[0]),
            Column("A", lambda item: setting_cell_text(item[1][0], console)),
            Column("B", lambda item: setting_cell_text(item[1][1], console)),
        )
        print_parts(console, fitting_table(columns, settings.items(), console.width))
    kinds = fitting_table(_KIND_COLUMNS, compare_kinds(found).items(), console.width)
    print_parts(console, "", cell(summarise_layers(found), "bold"), "", kinds)
    layers = found.comparable if every else most_different(found, _MOST_LAYERS)
    if layers:
        head = "every layer" if every else f"the {len(layers)} layers that differ most"
        print_parts(console, "", cell(head, "bold"), fitting_table(_LAYER_COLUMNS, layers, console.width))
    for head, names in (
        ("other in_features, so not compared", [pair.name for pair in found.both if pair.other_width]),
        ("only in A", found.only_a),
        ("only in B", found.only_b),
    ):
        if names:
            print_parts(console, "", cell(f"{head}: {len(names)}", "bold"), *map(cell, names[:_MOST_LAYERS]))
            if len(names) > _MOST_LAYERS:
                print_parts(console, cell(f"and {len(names) - _MOST_LAYERS} more"))
    if "(model id)" in settings and found.both:
        say("the base models differ: layers are compared by their names, and inputs may not mean the same")


def summarise_layers(found: "ArtifactComparison") -> str:
    """Return a line on all layers that can be compared."""
    layers = len(found.comparable)
    angles = "" if found.overlap is None else f"; overlap {found.overlap:.4f}, largest angle {found.largest_deg:.2f}°"
    return f"{found.equal_ranks} of {layers} layers have equal ranks{angles}"


def angle_text(value: float | None) -> str | None:
    """Return an angle with its unit."""
    return None if value is None else f"{value:.2f}°"


def setting_cell_text(value: Any, console: "Console") -> str | None:
    """Return a value as it is written in settings, cut to half the terminal; a sha256 by its first digits."""
    from eva_dist.report.settings import text

    if value is None:
        return None
    written = text(value, None)
    if re.fullmatch(r"(sha256:)?[0-9a-f]{64}", written):
        return written.removeprefix("sha256:")[:12]
    most = max(min((console.width - 36) // 2, 64), 12)
    return written if len(written) <= most else f"…{written[-most + 1 :]}"


def comparison_document(
    words: tuple[str, str],
    opened: "tuple[ArtifactReader, ArtifactReader]",
    settings: dict[str, Any],
    found: "ArtifactComparison",
) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        **{key: {"source": word, "at": one.where, "fingerprint": one.snapshot.fingerprint}
           for key, word, one in zip("ab", words, opened, strict=True)},
        "settings": {key: {"a": a, "b": b} for key, (a, b) in settings.items()},
        "layers_compared": len(found.comparable),
        "equal_ranks": found.equal_ranks,
        "overlap": found.overlap,
        "largest_deg": found.largest_deg,
        "layers": [
            {
                "name": pair.name,
                "rank_a": pair.rank_a,
                "rank_b": pair.rank_b,
                "other_width": pair.other_width,
                **(asdict(pair.angles) if pair.angles else {"overlap": None, "largest_deg": None}),
            }
            for pair in found.both
        ],
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
    }  # fmt: skip
