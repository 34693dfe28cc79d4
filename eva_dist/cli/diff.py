"""`eva-dist diff`: settings, ranks and subspaces in which two artifacts differ."""

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, StoreUrl
from eva_dist.cli.terminal import Column, cell, fitting_table, print_json, print_parts, results_console, say
from eva_dist.render.words import share

if TYPE_CHECKING:
    from rich.console import Console

    from eva_dist.store.artifact_reader import ArtifactReader
    from eva_dist.transform.compare import Comparison, LayerPair

_MOST_LAYERS = 20
_KIND_COLUMNS = (
    Column("module kind"),
    Column("layers", right=True),
    Column("ranks of A", right=True),
    Column("ranks of B", right=True),
    Column("equal", right=True, drop=2),
    Column("overlap", right=True),
    Column("largest angle", right=True, drop=1),
)
_LAYER_COLUMNS = (
    Column("layer"),
    Column("rank A", right=True),
    Column("rank B", right=True),
    Column("overlap", right=True),
    Column("largest angle", right=True, drop=1),
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


def print_comparison(words: tuple[str, str], settings: dict[str, Any], found: "Comparison", every: bool) -> None:
    """Print settings that differ, totals, ranks by module kind, and the layers that differ most, or every layer."""
    from eva_dist.transform.compare_artifacts import most_different

    console = results_console()
    print_parts(console, cell(f"A  {words[0]}"), cell(f"B  {words[1]}"), "")
    if not settings:
        print_parts(console, cell("settings: the same"))
    else:
        columns = (Column("differs"), Column("A"), Column("B"))
        rows = [
            [cell(key), cell(setting_cell_text(a, console)), cell(setting_cell_text(b, console))]
            for key, (a, b) in settings.items()
        ]
        print_parts(console, fitting_table(columns, rows, console.width))
    print_parts(console, "", cell(summarise_layers(found), "bold"), "", kinds_table(found, console))
    layers = found.comparable if every else most_different(found, _MOST_LAYERS)
    if layers:
        head = "every layer" if every else f"the {len(layers)} layers that differ most"
        print_parts(
            console,
            "",
            cell(head, "bold"),
            fitting_table(_LAYER_COLUMNS, [layer_row(pair) for pair in layers], console.width),
        )
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


def summarise_layers(found: "Comparison") -> str:
    """Return a line on all layers that can be compared."""
    layers = len(found.comparable)
    angles = "" if found.overlap is None else f"; overlap {found.overlap:.4f}, largest angle {found.largest_deg:.2f}°"
    return f"{found.equal_ranks} of {layers} layers have equal ranks{angles}"


def kinds_table(found: "Comparison", console: "Console") -> Any:
    """Return a table with a row for each module kind."""
    from eva_dist.transform.compare_artifacts import compare_kinds

    rows = [
        [
            cell(one.kind),
            cell(one.layers),
            cell(f"{one.rank_a:,}"),
            cell(f"{one.rank_b:,}"),
            cell(share(one.equal_share, 0)),
            cell(overlap_text(one.overlap)),
            cell(angle_text(one.largest_deg)),
        ]
        for one in compare_kinds(found)
    ]
    return fitting_table(_KIND_COLUMNS, rows, console.width)


def layer_row(pair: "LayerPair") -> list[Any]:
    """Return a layer's row; its cells are those of `_LAYER_COLUMNS`."""
    overlap = None if pair.angles is None else pair.angles.overlap
    angle = None if pair.angles is None else pair.angles.largest_deg
    return [cell(pair.name), cell(pair.rank_a), cell(pair.rank_b), cell(overlap_text(overlap)), cell(angle_text(angle))]


def overlap_text(value: float | None) -> str | None:
    """Return an overlap with four digits."""
    return None if value is None else f"{value:.4f}"


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
    found: "Comparison",
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
