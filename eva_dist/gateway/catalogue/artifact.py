"""`/artifact/...`: what an artifact is, how to load it, and all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eva_dist.artifact.reading import Reading, plain, shown
from eva_dist.artifact.summary import NOT_CONVERGED, LayerRow
from eva_dist.gateway.catalogue.detail import CONVERGENCE_FILE, SPECTRUM_FILE, Detail
from eva_dist.gateway.catalogue.figures import convergence_figure, ranks_figure, spectra_figure
from eva_dist.gateway.catalogue.layout import render_page
from eva_dist.gateway.catalogue.snippets import Server, snippets
from eva_dist.report.settings import flatten_parts, whole_text

if TYPE_CHECKING:
    from eva_dist.gateway.catalogue.cache import ListedArtifact

_MOST_FACTS = 400


@dataclass(frozen=True)
class Around:
    """What else of the store an artifact's page speaks of.

    `others` are further revisions of its repo; `near` what one may compare it with; `known` artifacts by
    fingerprint; `children` those that came of this one; `sweep` the key of its pass and how many share it, if any do.
    """

    others: Sequence[ListedArtifact]
    near: Sequence[ListedArtifact]
    known: dict[str, ListedArtifact]
    children: Sequence[ListedArtifact]
    sweep: tuple[str, int] | None


def artifact_page(one: ListedArtifact, detail: Detail, around: Around, server: Server) -> str:
    """Return the page."""
    reading = Reading(one.snapshot.manifest)
    return render_page(
        "artifact.html",
        one.name,
        trail=[(one.name, None)],
        one=one,
        detail=detail,
        around=around,
        sentence=describe_in_words(one),
        unconverged=_why_unconverged(one, detail),
        problems=_problems_of(one, detail),
        snippets=snippets(one, server),
        needs_token=server.needs_token,
        ranks=ranks_figure(detail),
        spectra=spectra_figure([(one.name, detail.spectra)]),
        convergence=convergence_figure([(one.name, detail.convergence)]),
        workers=reading.count("world_size"),
        facts_stated=_flat_settings(reading, {group: f"{group}: " for group in ("model", "tokenizer", "data")}),
        versions=" · ".join(f"{key}\u00a0{value}" for key, value in _flat_settings(reading, {"versions": ""})),
        settings=_flat_settings(
            reading, {f"config.{group}": f"{group}." for group in ("model", "data", "eva", "solver")}
        ),
    )


def describe_in_words(one: ListedArtifact) -> str:
    """Return what the artifact is, in a sentence or two."""
    facts = one.facts
    known = [
        f"{key}\u00a0=\u00a0{plain(value)}"
        for key, value in (("r", facts.r), ("rho", facts.rho), ("tau", facts.tau))
        if value is not None
    ]
    known += ["whitened"] if facts.whiten else []
    start = "An EVA start" if facts.method == "eva" else f"A start by the method {shown(facts.method, 40)}"
    sentence = f"{start} of LoRA for {facts.model_name or 'a model that is not named'}"
    sentence += f", from {facts.data_name}" if facts.data_name else ""
    sentence += f": {', '.join(known)}" if known else ""
    ended = []
    if facts.layers and facts.layers_converged is not None:
        all_of = facts.layers_converged == facts.layers
        ended.append(f"{'all' if all_of else f'{facts.layers_converged} of'} {facts.layers} layers converged")
    ended += [f"{facts.steps:,} steps"] if facts.steps is not None else []
    ended += [f"{facts.tokens:,} tokens"] if facts.tokens is not None else []
    when = f"; made on {facts.created:%-d %B %Y}" if facts.created else ""
    return f"{sentence}. {', '.join(ended).capitalize()}{when}." if ended or when else f"{sentence}."


def _why_unconverged(one: ListedArtifact, detail: Detail) -> tuple[str, list[LayerRow]] | None:
    """Return why an artifact has not converged, and which of its layers still turned."""
    if one.facts.status != NOT_CONVERGED:
        return None
    left = [layer for layer in detail.layers if layer.stop_reason not in (None, "converged")]
    count = f"{len(left):,} of {len(detail.layers):,} layers"
    if one.facts.is_derived:
        return (
            f"{count} hold components that the pass it was derived from had not followed to tau, and it was told to "
            "accept that. A run of its own, or a lower eva.tau, would mend it.",
            left,
        )
    stop = str(one.snapshot.manifest.get("stop"))
    why = {"max_steps": "Its limit of steps was reached", "exhausted": "Its data ran out"}.get(stop, "It ended")
    return (
        f"{why} while {count} still turned, and it was told to accept that. "
        "Their components may differ from those that more data would give. Compute it again with more steps "
        "(eva.max_steps), larger ones (data.step_size), or a lower eva.tau.",
        left,
    )


def _problems_of(one: ListedArtifact, detail: Detail) -> list[str]:
    tables = (SPECTRUM_FILE, CONVERGENCE_FILE)
    undrawn = [f"cannot be drawn: {problem}" for problem in detail.problems if problem.startswith(tables)]
    return [*one.facts.problems, *undrawn]


def _flat_settings(reading: Reading, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return key and text of what parts of the manifest say, as long as it can be read."""
    stated = flatten_parts(reading, parts)
    return [(key, shown(whole_text(value))) for key, value in stated if value is not None][:_MOST_FACTS]
