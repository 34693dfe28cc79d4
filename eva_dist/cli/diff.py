"""`eva-dist diff`: settings, ranks and subspaces in which two artifacts differ."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eva_dist.artifact.file_names import STATE_DICT_FILE
from eva_dist.cli.completion import complete_names
from eva_dist.cli.options import STORE, AsJson, StoreUrl
from eva_dist.cli.terminal import Column, cell, fitting_table, print_json, put, say
from eva_dist.cli.terminal import stdout as results
from eva_dist.errors import ConfigError, IntegrityError
from eva_dist.render.words import share

if TYPE_CHECKING:
    from rich.console import Console

    from eva_dist.store.artifact_reader import Opened
    from eva_dist.transform.compare import ArtifactComparison, LayerPair

_GROUPS = ("model", "data", "eva", "solver")
_FACTS = (
    *(("model", key) for key in ("id", "revision", "config_sha256", "weights", "dtype")),
    *(("tokenizer", "sha256"), ("data", "digest"), ("data", "samples"), ("derived_from", "fingerprint")),
    *((key,) for key in ("method", "status", "steps", "tokens", "trainable_parameters")),
)
"""What a run found or was given, beside its settings."""
_MOST_LAYERS = 20
_KINDS = (
    Column("module kind"),
    Column("layers", right=True),
    Column("ranks of A", right=True),
    Column("ranks of B", right=True),
    Column("equal", right=True, drop=2),
    Column("overlap", right=True),
    Column("largest angle", right=True, drop=1),
)
_LAYERS = (
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
    from eva_dist.store.artifact_ref import open_source

    opened = open_source(a, store), open_source(b, store)
    compared = _compare(*opened)
    settings = differing(*(one.snapshot.manifest for one in opened))
    if as_json:
        print_json(_document((a, b), opened, settings, compared))
        return
    _print((a, b), settings, compared, every)


def differing(manifest_a: dict[str, Any], manifest_b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return settings and facts whose values differ, by key; None for what one of the artifacts does not say."""
    from eva_dist.artifact.reading import at
    from eva_dist.report.settings import flatten, same

    def known(manifest: dict[str, Any]) -> dict[str, Any]:
        groups = {key: group for key in _GROUPS if isinstance(group := at(manifest, "config", key), dict)}
        return flatten(groups) | {f"({' '.join(path)})": at(manifest, *path) for path in _FACTS}

    first, second = known(manifest_a), known(manifest_b)
    return {
        key: (first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if same(first.get(key)) != same(second.get(key))
    }


def _compare(one: "Opened", other: "Opened") -> "ArtifactComparison":
    """Compare the layers of two artifacts; errors name the artifact."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from eva_dist.artifact.layer_table import described_layers
    from eva_dist.transform.compare import compare_layers

    rows = []
    for opened in (one, other):
        try:
            rows.append(load(opened.read(STATE_DICT_FILE)))
        except (SafetensorError, ValueError, KeyError) as error:
            raise IntegrityError(f"{STATE_DICT_FILE} of {opened.where} is no safetensors file ({error})") from error
    shapes: list[dict[str, Sequence[int]]] = []
    for opened, tensors in zip((one, other), rows, strict=True):
        names = [layer.name for layer in described_layers(opened.snapshot.manifest)]
        if set(names) != set(tensors) or any(tensor.ndim != 2 for tensor in tensors.values()):
            raise IntegrityError(f"{STATE_DICT_FILE} of {opened.where} has other layers than its manifest")
        shapes.append({name: tensors[name].shape for name in names})
    if not set(shapes[0]) & set(shapes[1]):
        raise ConfigError(
            f"A and B have no layer in common: {next(iter(shapes[0]), 'none')}, ... and "
            f"{next(iter(shapes[1]), 'none')}, ...; compare artifacts of one base model"
        )
    try:
        return compare_layers(shapes[0], shapes[1], rows[0].__getitem__, rows[1].__getitem__)
    except ValueError as error:
        raise IntegrityError(f"{one.where} and {other.where} cannot be compared: {error}") from error


def _print(words: tuple[str, str], settings: dict[str, Any], found: "ArtifactComparison", every: bool) -> None:
    console = results()
    put(console, cell(f"A  {words[0]}"), cell(f"B  {words[1]}"), "")
    if not settings:
        put(console, cell("settings: the same"))
    else:
        columns = (Column("differs"), Column("A"), Column("B"))
        rows = [[cell(key), cell(_shown(a, console)), cell(_shown(b, console))] for key, (a, b) in settings.items()]
        put(console, fitting_table(columns, rows, console.width))
    put(console, "", cell(_summary(found), "bold"), "", _kinds(found, console))
    layers = found.comparable if every else _most_different(found.comparable)
    if layers:
        head = "every layer" if every else f"the {len(layers)} layers that differ most"
        put(console, "", cell(head, "bold"), fitting_table(_LAYERS, [_row(pair) for pair in layers], console.width))
    for head, names in (
        ("other in_features, so not compared", [pair.name for pair in found.both if pair.other_width]),
        ("only in A", found.only_a),
        ("only in B", found.only_b),
    ):
        if names:
            put(console, "", cell(f"{head}: {len(names)}", "bold"), *map(cell, names[:_MOST_LAYERS]))
            if len(names) > _MOST_LAYERS:
                put(console, cell(f"and {len(names) - _MOST_LAYERS} more"))
    if "(model id)" in settings and found.both:
        say("the base models differ: layers are compared by their names, and inputs may not mean the same")


def _summary(found: "ArtifactComparison") -> str:
    layers = len(found.comparable)
    angles = "" if found.overlap is None else f"; overlap {found.overlap:.4f}, largest angle {found.largest_deg:.2f}°"
    return f"{found.equal_ranks} of {layers} layers have equal ranks{angles}"


def _kinds(found: "ArtifactComparison", console: "Console") -> Any:
    from eva_dist.artifact.layer_names import kinds_in_order, places

    where = places([pair.name for pair in found.comparable])
    rows = []
    for kind in kinds_in_order(where):
        pairs = [pair for pair in found.comparable if where[pair.name].kind == kind]
        angles = [pair.angles for pair in pairs if pair.angles is not None]
        overlap = sum(one.overlap for one in angles) / len(angles) if angles else None
        largest = max((one.largest_deg for one in angles), default=None)
        ranks = (sum(pair.rank_a for pair in pairs), sum(pair.rank_b for pair in pairs))
        equal = sum(pair.rank_a == pair.rank_b for pair in pairs) / len(pairs)
        counts = (cell(len(pairs)), *(cell(f"{rank:,}") for rank in ranks), cell(share(equal, 0)))
        rows.append([cell(kind), *counts, cell(_overlap(overlap)), cell(_angle(largest))])
    return fitting_table(_KINDS, rows, console.width)


def _most_different(pairs: "Sequence[LayerPair]") -> "list[LayerPair]":
    """Return layers that differ in rank or subspace: those with the least overlap first, then the largest gap."""
    different = [
        pair
        for pair in pairs
        if pair.rank_a != pair.rank_b or (pair.angles is not None and pair.angles.overlap < 1 - 1e-6)
    ]

    def likeness(pair: "LayerPair") -> tuple[float, int]:
        return (round(pair.angles.overlap, 6) if pair.angles else -1.0, -abs(pair.rank_a - pair.rank_b))

    return sorted(different, key=likeness)[:_MOST_LAYERS]


def _row(pair: "LayerPair") -> list[Any]:
    overlap = None if pair.angles is None else pair.angles.overlap
    angle = None if pair.angles is None else pair.angles.largest_deg
    return [cell(pair.name), cell(pair.rank_a), cell(pair.rank_b), cell(_overlap(overlap)), cell(_angle(angle))]


def _overlap(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _angle(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}°"


def _shown(value: Any, console: "Console") -> str | None:
    from eva_dist.report.settings import text

    if value is None:
        return None
    written = text(value, None)
    if re.fullmatch(r"(sha256:)?[0-9a-f]{64}", written):
        return written.removeprefix("sha256:")[:12]
    most = max(min((console.width - 36) // 2, 64), 12)
    return written if len(written) <= most else f"…{written[-most + 1 :]}"


def _document(
    words: tuple[str, str], opened: "tuple[Opened, Opened]", settings: dict[str, Any], found: "ArtifactComparison"
) -> dict[str, Any]:
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
