"""`eva-dist show`: an artifact in the terminal, with its ranks and spectra as drawings of text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.artifact.file_names import SPECTRUM_FILE
from eva_dist.cli.options import STORE, AsJson, SourceArgument, StoreUrl
from eva_dist.cli.terminal import (
    Column,
    cell,
    facts_table,
    fitting_table,
    print_json,
    print_parts,
    results_console,
    size_text,
)
from eva_dist.render.words import NONE, amount, share

if TYPE_CHECKING:
    from rich.console import Console

    from eva_dist.artifact.layer_table import Kind, Layer, Ratios
    from eva_dist.store.open_artifact import ArtifactLocation
    from eva_dist.store.snapshot import Snapshot

_WIDEST = 120
"""Drawings are no wider, however wide the terminal."""
_WIDEST_SPECTRUM = 24
_SHOWN_SETTINGS = ("r", "rho", "tau", "whiten", "budget", "lora_alpha")
_SHOWN_DATA = ("split", "num_samples")
_KIND_COLUMNS = (
    Column("module kind"),
    Column("layers", right=True, drop=2),
    Column("ranks"),
    Column("rank 0", right=True, drop=4),
    Column("parameters", right=True, drop=3),
    Column("explained", right=True),
    Column("spectrum", drop=1),
)
_FILE_COLUMNS = (Column("file"), Column("size", right=True), Column("sha256", drop=1))
_LAYER_COLUMNS = (
    Column("layer"),
    Column("rank", right=True),
    Column("r", right=True, drop=4),
    Column("most", right=True, drop=3),
    Column("in", right=True, drop=2),
    Column("out", right=True, drop=2),
    Column("explained", right=True, drop=1),
    Column("updates", right=True, drop=5),
    Column("ended", drop=6),
)


def show(
    source: SourceArgument,
    store: StoreUrl = STORE,
    with_layers: Annotated[bool, typer.Option("--layers", help="List every layer too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show an artifact: what it is, ranks and spectra, files with sizes and sha256, and how to load it."""
    from eva_dist.artifact.layer_table import kinds_of, layers_of, read_ratios
    from eva_dist.store.open_artifact import locate_artifact, open_artifact

    opened = open_artifact(source, store)
    snapshot, found = opened.snapshot, locate_artifact(source, store, opened)
    ratios = read_ratios(opened.read(SPECTRUM_FILE), snapshot.manifest) if SPECTRUM_FILE in snapshot.files else None
    layers = layers_of(snapshot.manifest, ratios)
    kinds = kinds_of(layers, ratios)
    if as_json:
        print_json(artifact_document(source, snapshot, found, layers, kinds, with_layers))
        return
    console = results_console()
    sections: list[list[Any]] = [
        [facts_table(artifact_facts(snapshot, found))],
        list(draw_kinds(kinds, ratios, console)),
        list(draw_rank_map(layers, console)),
        [layers_table(layers, console)] if with_layers else [],
        [files_table(snapshot, console)],
        [facts_table(loading_lines(source, found))],
    ]
    for number, section in enumerate(filter(None, sections)):
        print_parts(console, *([""] if number else []), *section)


def first_published_name(manifest: Mapping[str, Any]) -> str | None:
    """Return what an artifact was first published as, which its manifest keeps: others may point to it since."""
    from eva_dist.artifact.listing import at

    names = at(manifest, "repo_id"), at(manifest, "revision")
    return f"{names[0]}@{names[1]}" if all(isinstance(name, str) for name in names) else None


def loading_lines(source: str, found: "ArtifactLocation") -> dict[str, str]:
    """Return how to get and load an artifact, a line each."""
    folder = json.dumps(str(found.folder or "FOLDER"))
    return {
        **({} if found.folder else {"get it": f"eva-dist pull {source} FOLDER"}),
        "as an adapter": f"PeftModel.from_pretrained(base, {folder}, is_trainable=True)",
        "as a start": f"eva_dist.load_eva_state_dict({json.dumps(str(found.folder or found.reference))})",
    }


def artifact_facts(snapshot: "Snapshot", found: "ArtifactLocation") -> dict[str, object]:
    """Return what the artifact is, a line for each fact; None for what its manifest does not say."""
    from eva_dist.artifact.listing import at, facts_of

    facts, manifest = facts_of(snapshot), snapshot.manifest
    first = first_published_name(manifest)

    def said(*keys: str) -> str:
        return setting_text(at(manifest, *keys))

    settings = [f"{key}={said('config', 'eva', key)}" for key in _SHOWN_SETTINGS]
    samples = [f"{key}={said('config', 'data', key)}" for key in _SHOWN_DATA if at(manifest, "config", "data", key)]
    return {
        "artifact": found.name,
        "first published as": None if first == found.name else first,
        "at": found.where,
        "status": f"{facts.status}: {said('layers_converged')} of {said('layers_total')} layers converged, "
        f"after {said('steps')} steps and {said('tokens')} tokens",
        "base model": " ".join(filter(None, [facts.base_model, text_or_none(at(manifest, "model", "revision"))])),
        "method": " ".join([said("method"), *settings]),
        "data": " ".join([facts.data or NONE, *samples]),
        "adapter": f"{said('trainable_parameters')} parameters, largest rank {said('largest_rank')}",
        "derived from": at(manifest, "derived_from", "fingerprint"),
        "created": facts.created,
        "fingerprint": snapshot.fingerprint,
        "size": f"{size_text(facts.size)} in {len(snapshot.files)} files",
    }


def draw_kinds(kinds: "Sequence[Kind]", ratios: "Ratios | None", console: "Console") -> Iterator[Any]:
    """Yield a table with a row for each module kind, and the key of its spectra."""
    from eva_dist.cli.text_charts import ink_for, spectrum_bars

    ink = ink_for(console.encoding)
    values = [value for kind in kinds for value in kind.spectrum if value > 0]
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    rows = [
        [
            cell(kind.name),
            cell(len(kind.ranks)),
            cell(f"{kind.ranks[0]} - {kind.median_rank:g} - {kind.ranks[-1]}"),
            cell(kind.ranks.count(0)),
            cell(amount(kind.parameters)),
            cell(share(kind.explained)),
            cell(spectrum_bars(kind.spectrum, low, high, _WIDEST_SPECTRUM, ink), "cyan"),
        ]
        for kind in kinds
    ]
    yield fitting_table(_KIND_COLUMNS, rows, console.width)
    if ratios and values:
        most = max(len(kind.spectrum) for kind in kinds)
        yield cell(
            f"ranks: least, median, most. spectrum: share of variance of components 1 to {most}, median over the "
            f"layers, {ink.bar(0.01)} {low:.1e} to {ink.bar(1)} {high:.1e}, logarithmic",
            "dim",
        )


def draw_rank_map(layers: "Sequence[Layer]", console: "Console") -> Iterator[Any]:
    """Yield a map of ranks: a row for each module kind, a column for each transformer block."""
    from eva_dist.artifact.layer_table import rank_grid
    from eva_dist.cli.text_charts import heat_lines, ink_for

    names, grid = rank_grid(layers)
    if not names or len(grid[0]) < 2:
        return
    ink = ink_for(console.encoding)
    highest = max((value for row in grid for value in row if value is not None), default=0.0)
    yield cell(f"rank by transformer block: {ink.bar(0.01)} low to {ink.bar(1)} {highest:g}, {ink.zero} none", "bold")
    *rows, axis = heat_lines(grid, names, min(console.width, _WIDEST), highest, ink)
    label = max(map(len, names)) + 1
    for row in rows:
        line = cell(row[:label])
        line.append_text(cell(row[label:], "cyan"))
        yield line
    yield cell(axis, "dim")


def layers_table(layers: "Sequence[Layer]", console: "Console") -> Any:
    """Return a table with a row for each layer; its cells are those of `_LAYER_COLUMNS`."""
    rows = [
        [
            cell(one.name),
            *(cell(number) for number in (one.rank, one.r, one.max_rank, one.in_features, one.out_features)),
            cell(share(one.explained)),
            cell(one.updates),
            cell(one.stop_reason),
        ]
        for one in layers
    ]
    return fitting_table(_LAYER_COLUMNS, rows, console.width)


def files_table(snapshot: "Snapshot", console: "Console") -> Any:
    """Return a table with a row for each file."""
    rows = [[cell(one.path), cell(size_text(one.size)), cell(one.sha256)] for one in snapshot.files.values()]
    if console.width < 100:
        rows = [[path, size, cell(sha256.plain[:16] + "…")] for path, size, sha256 in rows]
    return fitting_table(_FILE_COLUMNS, rows, console.width)


def artifact_document(
    source: str,
    snapshot: "Snapshot",
    found: "ArtifactLocation",
    layers: "Sequence[Layer]",
    kinds: "Sequence[Kind]",
    with_layers: bool,
) -> dict[str, Any]:
    """Return what `--json` prints."""
    from eva_dist.artifact.listing import at, facts_of

    manifest = snapshot.manifest
    names = ("repo_id", "revision", "method", "steps", "tokens", "layers_converged", "layers_total", "largest_rank")
    more = (*names, "trainable_parameters", "budget", "derived_from", "model", "data", "versions")
    document: dict[str, Any] = {
        "source": source,
        "name": found.name,
        "first_published_as": first_published_name(manifest),
        "at": found.where,
        "fingerprint": snapshot.fingerprint,
        "commit": snapshot.commit,
        **{key: at(manifest, key) for key in more},
        "facts": asdict(facts_of(snapshot)),
        "eva": at(manifest, "config", "eva"),
        "kinds": [asdict(kind) for kind in kinds],
        "files": [asdict(entry) for entry in snapshot.files.values()],
        "load": loading_lines(source, found),
    }
    if with_layers:
        document["layers"] = [asdict(layer) | {"parameters": layer.parameters} for layer in layers]
    return document


def setting_text(value: object) -> str:
    """Return a plain value as it is written in settings; nothing that is not one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else NONE


def text_or_none(value: object) -> str | None:
    """Return a text; None for anything else, which a manifest may hold in its place."""
    return value if isinstance(value, str) else None
