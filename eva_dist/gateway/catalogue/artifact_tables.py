"""Tables of an artifact's page: layers, files, revisions, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eva_dist.artifact.reading import Reading, shown
from eva_dist.gateway.catalogue.detail import Detail
from eva_dist.gateway.catalogue.filters import setting
from eva_dist.gateway.catalogue.layout import artifact_url, compare_url, counted, day, path, size, status
from eva_dist.render.markup import element, said, table
from eva_dist.render.words import NONE, share
from eva_dist.report.settings import flatten, text

if TYPE_CHECKING:
    from eva_dist.gateway.catalogue.cache import Listed

_MOST_LAYERS = 2000
_MOST_OTHERS = 200
_MOST_FACTS = 400


def layers_table(detail: Detail) -> str:
    """Return a row a layer, in model order, behind a summary."""
    rows, keys = [], []
    for layer in detail.layers[:_MOST_LAYERS]:
        explained, at = detail.explained.get(layer.name), detail.converged_at.get(layer.name)
        reason = (layer.stop_reason or NONE).replace("_", " ")
        if layer.components_below_tau:
            reason += f", {layer.components_below_tau} below tau"
        name = said(shown(layer.name, 200))
        sizes = counted(layer.in_features), counted(layer.out_features)
        counts = counted(layer.rank), counted(layer.max_rank), *sizes, counted(layer.updates)
        rows.append([name, *counts, said(reason), counted(at), share(explained)])
        key = layer.rank, layer.max_rank, layer.in_features, layer.out_features, layer.updates
        keys.append([shown(layer.name, 200), *key, reason, at, None if explained is None else f"{explained:.4g}"])
    head = ["layer", "rank", "at most", "inputs", "outputs", "updates", "stopped because", "at step", "explained"]
    more = len(detail.layers) - _MOST_LAYERS
    caption = (
        f"The first {_MOST_LAYERS:,}; {more:,} more are in manifest.json"
        if more > 0
        else "In the model's order, unless sorted"
    )
    summary = element("summary", said(f"All {len(detail.layers):,} layers, one by one"))
    return element("details", summary, table(caption, head, rows, keys), id="layers-table")


def files_table(one: Listed) -> str:
    """Return a row a file, with its size, its sha256 and where it is downloaded."""
    folder = f"/{path(one.revision.repo_id)}/resolve/{one.snapshot.commit}"
    rows, keys = [], []
    for name, file in one.snapshot.files.items():
        link = element("a", said(shown(name, 200)), href=f"{folder}/{path(name)}", download=name.rpartition("/")[2])
        rows.append([link, size(file.size), element("code", said(file.sha256))])
        keys.append([name, file.size, file.sha256])
    caption = f"{len(rows)} files, {size(one.facts.size)}; each is checked against its sha256 by the clients above"
    return table(caption, ["file", "size", "sha256"], rows, keys, class_="sortable files")


def revisions_table(one: Listed, others: Sequence[Listed]) -> str:
    """Return a row a further revision of the repo."""
    rows, keys = [], []
    for other in others[:_MOST_OTHERS]:
        facts = other.facts
        link = element("a", said(other.revision.revision), href=artifact_url(other))
        compare = element(
            "a", "compare", href=compare_url(one.name, other.name), aria_label=f"Compare with {other.name}"
        )
        settings = setting(facts.r), setting(facts.rho), setting(facts.tau)
        when = day(other.revision.moved)
        rows.append([link, *settings, status(facts), counted(facts.total_rank), counted(facts.steps), when, compare])
        key = (
            facts.r,
            facts.rho,
            facts.tau,
            facts.status,
            facts.total_rank,
            facts.steps,
            other.revision.moved.isoformat(),
        )
        keys.append([other.revision.revision, *key, None])
    head = ["revision", "r", "rho", "tau", "status", "total rank", "steps", "published", "side by side"]
    more = len(others) - _MOST_OTHERS
    caption = f"Other revisions of {one.revision.repo_id}" + (
        f"; {more:,} more are in the catalogue" if more > 0 else ""
    )
    return table(caption, head, rows, keys)


def provenance_table(one: Listed, known: dict[str, Listed]) -> str:
    """Return where the artifact comes from, then every setting."""
    reading = Reading(one.snapshot.manifest)
    facts: list[tuple[str, str]] = [
        ("fingerprint", _code(one.facts.fingerprint)),
        ("commit", _code(one.snapshot.commit)),
        ("made", day(one.facts.created)),
        ("published", day(one.revision.moved)),
    ]
    for ancestor in one.facts.ancestors:
        source = known.get(ancestor.fingerprint)
        link = element("a", said(source.name), href=artifact_url(source)) + " " if source else ""
        words = said(f" ({ancestor.words})") if ancestor.words else ""
        where = "" if source else " (not in this store, or not for you to see)"
        facts.append((f"{ancestor.how} from", f"{link}{_code(ancestor.fingerprint)}{words}{where}"))
    if one.facts.seconds is not None:
        facts.append(("seconds of the pass", f"{one.facts.seconds:,.1f}"))
    if (workers := reading.count("world_size")) is not None:
        facts.append(("workers", str(workers)))
    facts += [(f"{g}: {k}", _code(v)) for g in ("model", "tokenizer", "data") for k, v in _flat(reading, g)]
    versions = " · ".join(f"{k}\u00a0{v}" for k, v in _flat(reading, "versions"))
    facts += [("versions", said(versions))] if versions else []
    rows = [[said(shown(key, 120)), value] for key, value in facts[:_MOST_FACTS]]
    return table("Where it comes from", ["fact", "value"], rows, class_="words") + _settings(reading)


def _settings(reading: Reading) -> str:
    found = [
        (f"{group}.{key}", value)
        for group in ("model", "data", "eva", "solver")
        for key, value in _flat(reading, f"config.{group}")
    ]
    if not found:
        return ""
    rows = [[element("code", said(shown(key, 120))), _code(value)] for key, value in found[:_MOST_FACTS]]
    inner = table("As the run was given them", ["setting", "value"], rows, class_="words")
    return element("details", element("summary", said(f"All {len(rows)} settings of the run")), inner)


def _flat(reading: Reading, path_: str) -> list[tuple[str, str]]:
    """Return dotted key and text of what a part of the manifest says, as long as it can be read."""
    found = reading.found(path_)
    if not isinstance(found, dict):
        return []
    return [(key, shown(_text(value))) for key, value in flatten(found).items() if value is not None]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else text(value, most=None)


def _code(value: str) -> str:
    return element("code", said(value)) if value else "(empty)"
