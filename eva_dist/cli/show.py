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
    from rich.text import Text

    from eva_dist.artifact.layer_table import DescribedLayer, ModuleKind
    from eva_dist.artifact.tables import Spectrum
    from eva_dist.store.open_artifact import ArtifactLocation
    from eva_dist.store.snapshot import Snapshot

_WIDEST = 120
"""Drawings are no wider, however wide the terminal."""
_WIDEST_SPECTRUM = 24
_SHOWN_SETTINGS = ("r", "rho", "tau", "whiten", "budget", "lora_alpha")
_SHOWN_DATA = ("split", "num_samples")
_FILE_COLUMNS = (
    Column("file", lambda file: file.path),
    Column("size", lambda file: size_text(file.size), right=True),
    Column("sha256", lambda file: file.sha256, drop=1),
)
_NARROW_FILE_COLUMNS = (*_FILE_COLUMNS[:2], Column("sha256", lambda file: f"{file.sha256[:16]}…", drop=1))
_LAYER_COLUMNS = (
    Column("layer", lambda layer: layer.name),
    Column("rank", lambda layer: layer.rank, right=True),
    Column("r", lambda layer: layer.r, right=True, drop=4),
    Column("most", lambda layer: layer.max_rank, right=True, drop=3),
    Column("in", lambda layer: layer.in_features, right=True, drop=2),
    Column("out", lambda layer: layer.out_features, right=True, drop=2),
    Column("explained", lambda layer: share(layer.explained), right=True, drop=1),
    Column("updates", lambda layer: layer.updates, right=True, drop=5),
    Column("ended", lambda layer: layer.stop_reason, drop=6),
)


def show(
    source: SourceArgument,
    store: StoreUrl = STORE,
    with_layers: Annotated[bool, typer.Option("--layers", help="List every layer too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show an artifact: what it is, ranks and spectra, files with sizes and sha256, and how to load it."""
    from eva_dist.artifact.layer_table import described_layers, module_kinds, spectrum_of
    from eva_dist.store.open_artifact import locate_artifact, open_artifact

    opened = open_artifact(source, store)
    snapshot, found = opened.snapshot, locate_artifact(source, store, opened)
    spectrum = spectrum_of(opened.read(SPECTRUM_FILE), snapshot.manifest) if SPECTRUM_FILE in snapshot.files else None
    layers = described_layers(snapshot.manifest, spectrum)
    kinds = module_kinds(layers, spectrum)
    if as_json:
        print_json(artifact_document(source, snapshot, found, layers, kinds, with_layers))
        return
    console = results_console()
    file_columns = _NARROW_FILE_COLUMNS if console.width < 100 else _FILE_COLUMNS
    sections: list[list[Any]] = [
        [facts_table(artifact_facts(snapshot, found))],
        list(draw_kinds(kinds, spectrum, console)),
        list(draw_rank_map(layers, console)),
        [fitting_table(_LAYER_COLUMNS, layers, console.width)] if with_layers else [],
        [fitting_table(file_columns, snapshot.files.values(), console.width)],
        [facts_table(loading_lines(source, found))],
    ]
    for number, section in enumerate(filter(None, sections)):
        print_parts(console, *([""] if number else []), *section)


def first_published_name(manifest: Mapping[str, Any]) -> str | None:
    """Return what an artifact was first published as, which its manifest keeps: others may point to it since."""
    from eva_dist.artifact.reading import at

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
    from eva_dist.artifact.reading import at
    from eva_dist.artifact.summary import read_summary

    facts, manifest = read_summary(snapshot), snapshot.manifest
    first, revision = first_published_name(manifest), at(manifest, "model", "revision")

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
        "base model": " ".join(filter(None, [facts.base_model, revision if isinstance(revision, str) else None])),
        "method": " ".join([said("method"), *settings]),
        "data": " ".join([facts.data or NONE, *samples]),
        "adapter": f"{said('trainable_parameters')} parameters, largest rank {said('largest_rank')}",
        "derived from": at(manifest, "derived_from", "fingerprint"),
        "created": facts.created and facts.created.isoformat(),
        "fingerprint": snapshot.fingerprint,
        "size": f"{size_text(facts.size)} in {len(snapshot.files)} files",
    }


def draw_kinds(kinds: "Sequence[ModuleKind]", spectrum: "Spectrum | None", console: "Console") -> Iterator[Any]:
    """Yield a table with a row for each module kind, and the key of its spectra."""
    from eva_dist.cli.text_charts import ink_for, spectrum_bars

    ink = ink_for(console.encoding)
    values = [value for kind in kinds for value in kind.spectrum if value > 0]
    low, high = (min(values), max(values)) if values else (1.0, 1.0)

    def draw_spectrum(kind: "ModuleKind") -> "Text":
        return cell(spectrum_bars(kind.spectrum, low, high, _WIDEST_SPECTRUM, ink), "cyan")

    columns = (
        Column("module kind", lambda kind: kind.name),
        Column("layers", lambda kind: len(kind.ranks), right=True, drop=2),
        Column("ranks", lambda kind: f"{kind.ranks[0]} - {kind.median_rank:g} - {kind.ranks[-1]}"),
        Column("rank 0", lambda kind: kind.ranks.count(0), right=True, drop=4),
        Column("parameters", lambda kind: amount(kind.parameters), right=True, drop=3),
        Column("explained", lambda kind: share(kind.explained), right=True),
        Column("spectrum", draw_spectrum, drop=1),
    )
    yield fitting_table(columns, kinds, console.width)
    if spectrum and values:
        most = max(len(kind.spectrum) for kind in kinds)
        yield cell(
            f"ranks: least, median, most. spectrum: share of variance of components 1 to {most}, median over the "
            f"layers, {ink.bar(0.01)} {low:.1e} to {ink.bar(1)} {high:.1e}, logarithmic",
            "dim",
        )


def draw_rank_map(layers: "Sequence[DescribedLayer]", console: "Console") -> Iterator[Any]:
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


def artifact_document(
    source: str,
    snapshot: "Snapshot",
    found: "ArtifactLocation",
    layers: "Sequence[DescribedLayer]",
    kinds: "Sequence[ModuleKind]",
    with_layers: bool,
) -> dict[str, Any]:
    """Return what `--json` prints."""
    from eva_dist.artifact.reading import at
    from eva_dist.artifact.summary import read_summary

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
        "facts": read_summary(snapshot).to_dict(),
        "eva": at(manifest, "config", "eva"),
        "kinds": [asdict(kind) for kind in kinds],
        "files": [asdict(entry) for entry in snapshot.files.values()],
        "load": loading_lines(source, found),
    }
    if with_layers:
        keys = ("rank", "r", "max_rank", "in_features", "out_features", "updates", "stop_reason", "explained")
        document["layers"] = [
            {"name": one.name, "place": asdict(one.place), **{key: getattr(one, key) for key in (*keys, "parameters")}}
            for one in layers
        ]
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
