"""`eva-dist show`: an artifact in the terminal, with its ranks and spectra as drawings of text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.artifact.file_names import SPECTRUM_FILE
from eva_dist.cli.options import STORE, AsJson, Source, StoreUrl
from eva_dist.cli.terminal import Column, cell, facts_table, fitting_table, print_json, put, size_text
from eva_dist.cli.terminal import stdout as results
from eva_dist.render.words import NONE, amount, share

if TYPE_CHECKING:
    from rich.console import Console

    from eva_dist.artifact.layer_table import DescribedLayer, ModuleKind
    from eva_dist.artifact.tables import Spectrum
    from eva_dist.store.artifact_reader import Opened
    from eva_dist.store.snapshot import Snapshot

_WIDEST = 120
"""Drawings are no wider, however wide the terminal."""
_WIDEST_SPECTRUM = 24
_KINDS = (
    Column("module kind"),
    Column("layers", right=True, drop=2),
    Column("ranks"),
    Column("rank 0", right=True, drop=4),
    Column("parameters", right=True, drop=3),
    Column("explained", right=True),
    Column("spectrum", drop=1),
)
_FILES = (Column("file"), Column("size", right=True), Column("sha256", drop=1))
_LAYERS = (
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
    source: Source,
    store: StoreUrl = STORE,
    with_layers: Annotated[bool, typer.Option("--layers", help="List every layer too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show an artifact: what it is, ranks and spectra, files with sizes and sha256, and how to load it."""
    from eva_dist.artifact.layer_table import described_layers, module_kinds, spectrum_of
    from eva_dist.store.artifact_ref import open_source

    opened = open_source(source, store)
    snapshot, found = opened.snapshot, find(source, store, opened)
    is_told = SPECTRUM_FILE in snapshot.files
    spectrum = spectrum_of(opened.read(SPECTRUM_FILE), snapshot.manifest) if is_told else None
    layers = described_layers(snapshot.manifest, spectrum)
    kinds = module_kinds(layers, spectrum)
    if as_json:
        print_json(_document(source, snapshot, found, layers, kinds, with_layers))
        return
    console = results()
    sections: list[list[Any]] = [
        [facts_table(_facts(snapshot, found))],
        list(_kinds(kinds, spectrum, console)),
        list(_map(layers, console)),
        [_layers(layers, console)] if with_layers else [],
        [_files(snapshot, console)],
        [facts_table(loading(source, found))],
    ]
    for number, section in enumerate(filter(None, sections)):
        put(console, *([""] if number else []), *section)


@dataclass(frozen=True)
class Found:
    """Where an artifact is: to show, its folder if it has one here, and the word for it that holds everywhere.

    `name` is what it was asked for by, `team/name@revision` with the revision that this means now; None for a folder.
    """

    where: str
    folder: Path | None
    word: str
    name: str | None = None


def find(source: str, store_url: str, opened: "Opened") -> Found:
    """Return where an artifact is; in a folder store that is the name's own folder."""
    from eva_dist.store.artifact_ref import Kind, parse_source
    from eva_dist.store.store import Store

    parsed = parse_source(source, store_url)
    if parsed.kind is Kind.folder:
        return Found(opened.where, Path(parsed.url).absolute(), str(Path(parsed.url).absolute()))
    if parsed.kind is Kind.hub or not parsed.repo_id:
        at = "@" if parsed.revision else ""
        name = f"{parsed.repo_id}{at}{parsed.revision or ''}" if parsed.repo_id else None
        return Found(opened.where, None, source, name)
    store = Store(parsed.url)
    revision = store.resolve(parsed.repo_id, parsed.revision).revision
    folder = None if store.root is None else store.root / parsed.repo_id / revision
    name = f"{parsed.repo_id}@{revision}"
    word = f"{store.root or parsed.url.rstrip('/')}/{name}"
    there = folder is not None and folder.exists()
    return Found(str(folder) if there else opened.where, folder if there else None, word, name)


def first_name(manifest: Mapping[str, Any]) -> str | None:
    """Return what an artifact was first published as, which its manifest keeps: others may point to it since."""
    from eva_dist.artifact.reading import at

    names = at(manifest, "repo_id"), at(manifest, "revision")
    return f"{names[0]}@{names[1]}" if all(isinstance(name, str) for name in names) else None


def loading(source: str, found: Found) -> dict[str, str]:
    """Return how to get and load an artifact, a line each."""
    folder = json.dumps(str(found.folder or "FOLDER"))
    return {
        **({} if found.folder else {"get it": f"eva-dist pull {source} FOLDER"}),
        "as an adapter": f"PeftModel.from_pretrained(base, {folder}, is_trainable=True)",
        "as a start": f"eva_dist.load_eva_state_dict({json.dumps(str(found.folder or found.word))})",
    }


def _facts(snapshot: "Snapshot", found: Found) -> dict[str, object]:
    from eva_dist.artifact.reading import at
    from eva_dist.artifact.summary import read_summary

    facts, manifest = read_summary(snapshot), snapshot.manifest
    eva, data = at(manifest, "config", "eva"), at(manifest, "config", "data")
    settings = ("r", "rho", "tau", "whiten", "budget", "lora_alpha")
    given, first = {key: at(data, key) for key in ("split", "num_samples")}, first_name(manifest)
    return {
        "artifact": found.name,
        "first published as": None if first == found.name else first,
        "at": found.where,
        "status": f"{facts.status}: {_value(at(manifest, 'layers_converged'))} of "
        f"{_value(at(manifest, 'layers_total'))} layers converged, after {_value(at(manifest, 'steps'))} steps and "
        f"{_value(at(manifest, 'tokens'))} tokens",
        "base model": " ".join(filter(None, [facts.base_model, _text(at(manifest, "model", "revision"))])),
        "method": " ".join([_value(at(manifest, "method")), *(f"{key}={_value(at(eva, key))}" for key in settings)]),
        "data": " ".join([facts.data or NONE, *(f"{key}={_value(one)}" for key, one in given.items() if one)]),
        "adapter": f"{_value(at(manifest, 'trainable_parameters'))} parameters, largest rank "
        f"{_value(at(manifest, 'largest_rank'))}",
        "derived from": at(manifest, "derived_from", "fingerprint"),
        "created": facts.created and facts.created.isoformat(),
        "fingerprint": snapshot.fingerprint,
        "size": f"{size_text(facts.size)} in {len(snapshot.files)} files",
    }


def _kinds(kinds: "Sequence[ModuleKind]", spectrum: "Spectrum | None", console: "Console") -> Iterator[Any]:
    from eva_dist.cli.text_charts import spectrum_bars

    ink = _ink(console)
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
    yield fitting_table(_KINDS, rows, console.width)
    if spectrum and values:
        most = max(len(kind.spectrum) for kind in kinds)
        yield cell(
            f"ranks: least, median, most. spectrum: share of variance of components 1 to {most}, median over the "
            f"layers, {ink.bar(0.01)} {low:.1e} to {ink.bar(1)} {high:.1e}, logarithmic",
            "dim",
        )


def _map(layers: "Sequence[DescribedLayer]", console: "Console") -> Iterator[Any]:
    from eva_dist.artifact.layer_table import rank_grid
    from eva_dist.cli.text_charts import heat_lines

    names, grid = rank_grid(layers)
    if not names or len(grid[0]) < 2:
        return
    ink = _ink(console)
    highest = max((value for row in grid for value in row if value is not None), default=0.0)
    yield cell(f"rank by transformer block: {ink.bar(0.01)} low to {ink.bar(1)} {highest:g}, {ink.zero} none", "bold")
    *rows, axis = heat_lines(grid, names, min(console.width, _WIDEST), highest, ink)
    label = max(map(len, names)) + 1
    for row in rows:
        line = cell(row[:label])
        line.append_text(cell(row[label:], "cyan"))
        yield line
    yield cell(axis, "dim")


def _layers(layers: "Sequence[DescribedLayer]", console: "Console") -> Any:
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
    return fitting_table(_LAYERS, rows, console.width)


def _files(snapshot: "Snapshot", console: "Console") -> Any:
    rows = [[cell(one.path), cell(size_text(one.size)), cell(one.sha256)] for one in snapshot.files.values()]
    if console.width < 100:
        rows = [[path, size, cell(sha256.plain[:16] + "…")] for path, size, sha256 in rows]
    return fitting_table(_FILES, rows, console.width)


def _document(
    source: str,
    snapshot: "Snapshot",
    found: Found,
    layers: "Sequence[DescribedLayer]",
    kinds: "Sequence[ModuleKind]",
    with_layers: bool,
) -> dict[str, Any]:
    from eva_dist.artifact.reading import at
    from eva_dist.artifact.summary import read_summary

    manifest = snapshot.manifest
    names = ("repo_id", "revision", "method", "steps", "tokens", "layers_converged", "layers_total", "largest_rank")
    more = (*names, "trainable_parameters", "budget", "derived_from", "model", "data", "versions")
    document: dict[str, Any] = {
        "source": source,
        "name": found.name,
        "first_published_as": first_name(manifest),
        "at": found.where,
        "fingerprint": snapshot.fingerprint,
        "commit": snapshot.commit,
        **{key: at(manifest, key) for key in more},
        "facts": read_summary(snapshot).to_dict(),
        "eva": at(manifest, "config", "eva"),
        "kinds": [asdict(kind) for kind in kinds],
        "files": [asdict(entry) for entry in snapshot.files.values()],
        "load": loading(source, found),
    }
    if with_layers:
        document["layers"] = [_layer_document(layer) for layer in layers]
    return document


def _layer_document(layer: "DescribedLayer") -> dict[str, Any]:
    keys = ("rank", "r", "max_rank", "in_features", "out_features", "updates", "stop_reason", "explained", "parameters")
    return {"name": layer.name, "place": asdict(layer.place), **{key: getattr(layer, key) for key in keys}}


def _ink(console: "Console") -> Any:
    from eva_dist.cli.text_charts import ASCII_INK, INK

    return INK if console.encoding.lower().startswith("utf") else ASCII_INK


def _value(value: object) -> str:
    """Return a plain value as it is written in settings; nothing that is not one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else NONE


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
