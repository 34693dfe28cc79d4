"""`/artifact/...`: what an artifact is, how to load it, and all that is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eva_dist.artifact.manifest_facts import DONE, NOT_CONVERGED
from eva_dist.artifact.reading import shown
from eva_dist.gateway.catalogue.artifact_tables import files_table, layers_table, provenance_table, revisions_table
from eva_dist.gateway.catalogue.detail import CONVERGENCE_FILE, SPECTRUM_FILE, Detail
from eva_dist.gateway.catalogue.figures import convergence_figure, ranks_figure, spectra_figure
from eva_dist.gateway.catalogue.filters import setting
from eva_dist.gateway.catalogue.layout import (
    artifact_url,
    counted,
    document,
    note,
    section,
    size,
    status,
    warning,
)
from eva_dist.gateway.catalogue.snippets import Server, snippets
from eva_dist.render.markup import element, said
from eva_dist.render.words import NONE, amount, share

if TYPE_CHECKING:
    from eva_dist.gateway.catalogue.cache import Listed

_MOST_CHOICES = 200
_MOST_ANCESTORS = 10
_MOST_TURNING = 6


@dataclass(frozen=True)
class Around:
    """What else of the store an artifact's page speaks of.

    `others` are further revisions of its repo; `near` what one may compare it with; `known` artifacts by
    fingerprint; `children` those that came of this one; `sweep` the key of its pass and how many share it, if any do.
    """

    others: Sequence[Listed]
    near: Sequence[Listed]
    known: dict[str, Listed]
    children: Sequence[Listed]
    sweep: tuple[str, int] | None


def artifact_page(one: Listed, detail: Detail, around: Around, server: Server) -> str:
    """Return the page."""
    facts = one.facts
    lead = element("p", status(facts), " ", said(sentence(one)), class_="sentence")
    parts = [lead, _ancestry(one, around), _unconverged(one, detail), _incomplete(one, detail), _tiles(one, detail)]
    parts.append(section("Load it", snippets(one, server), _loading_notes(one, server)))
    parts.append(section("Ranks", ranks_figure(detail)))
    if spectra := spectra_figure([(one.name, detail.spectra)]):
        parts.append(section("Spectra", note(_SPECTRA), spectra))
    if convergence := convergence_figure([(one.name, detail.convergence)]):
        of_source = note("The curve is that of the pass it was derived from.") if one.facts.is_derived else ""
        parts.append(section("Convergence", of_source, convergence))
    if detail.layers:
        parts.append(section("Layers", layers_table(detail)))
    parts.append(section("Files", files_table(one)))
    parts.append(section("Other artifacts", _others(one, around)))
    parts.append(section("Provenance", provenance_table(one, around.known)))
    return document(one.name, *parts, trail=[(one.name, None)])


_SPECTRA = (
    "How much of the total variance of a layer's inputs each component explains. EVA gives ranks to the components "
    "that explain most, over all layers."
)


def sentence(one: Listed) -> str:
    """Return what the artifact is, in a sentence or two."""
    facts = one.facts
    known = [
        f"{key}\u00a0=\u00a0{setting(value)}"
        for key, value in (("r", facts.r), ("rho", facts.rho), ("tau", facts.tau))
        if value is not None
    ]
    known += ["whitened"] if facts.whiten else []
    start = "An EVA start" if facts.method == "eva" else f"A start by the method {shown(facts.method, 40)}"
    said_of = f"{start} of LoRA for {facts.model_name or 'a model that is not named'}"
    said_of += f", from {facts.data_name}" if facts.data_name else ""
    said_of += f": {', '.join(known)}" if known else ""
    ended = []
    if facts.layers and facts.layers_converged is not None:
        all_of = facts.layers_converged == facts.layers
        ended.append(f"{'all' if all_of else f'{facts.layers_converged} of'} {facts.layers} layers converged")
    ended += [f"{facts.steps:,} steps"] if facts.steps is not None else []
    ended += [f"{facts.tokens:,} tokens"] if facts.tokens is not None else []
    when = f"; made on {facts.created:%-d %B %Y}" if facts.created else ""
    return f"{said_of}. {', '.join(ended).capitalize()}{when}." if ended or when else f"{said_of}."


def _ancestry(one: Listed, around: Around) -> str:
    """Return what the artifact was made of, where it is no run of its own."""
    parts = []
    for ancestor in one.facts.ancestors:
        source = around.known.get(ancestor.fingerprint)
        name = element("code", said(ancestor.fingerprint[:16]))
        link = element("a", said(source.name), href=artifact_url(source)) if source else name
        words = f" ({ancestor.words})" if ancestor.words else ""
        parts.append(element("p", said(ancestor.how.capitalize()), " from ", link, said(f"{words}.")))
    return "".join(parts[:_MOST_ANCESTORS])


def _unconverged(one: Listed, detail: Detail) -> str:
    if one.facts.status != NOT_CONVERGED:
        return ""
    left = [layer for layer in detail.layers if layer.stop_reason not in (None, "converged")]
    stop = str(one.snapshot.manifest.get("stop"))
    why = {"max_steps": "Its limit of steps was reached", "exhausted": "Its data ran out"}.get(stop, "It ended")
    told = (
        f"{why} while {len(left):,} of {len(detail.layers):,} layers still turned, and it was told to accept that. "
        "Their components may differ from those that more data would give. Compute it again with more steps "
        "(eva.max_steps), larger ones (data.step_size), or a lower eva.tau."
    )
    if one.facts.is_derived:
        told = (
            f"{len(left):,} of {len(detail.layers):,} layers hold components that the pass it was derived from had not "
            "followed to tau, and it was told to accept that. A run of its own, or a lower eva.tau, would mend it."
        )
    listed = ", ".join(element("code", said(shown(layer.name, 120))) for layer in left[:_MOST_TURNING])
    more = f" and {len(left) - _MOST_TURNING:,} more, in the table of layers" if len(left) > _MOST_TURNING else ""
    which = element("p", "Still turning: ", listed, said(more), ".") if left else ""
    return warning("This initialisation has not converged.", element("p", said(told)), which)


def _incomplete(one: Listed, detail: Detail) -> str:
    files = (SPECTRUM_FILE, CONVERGENCE_FILE)
    problems = [
        *one.facts.problems,
        *(f"cannot be drawn: {problem}" for problem in detail.problems if problem.startswith(files)),
    ]
    if not problems:
        return ""
    items = [element("li", said(problem)) for problem in problems[:30]]
    told = "What is known is shown; the rest is left out. Its files can be downloaded as they are."
    return warning("The manifest is not as eva_dist writes it.", element("ul", *items), element("p", told))


def _tiles(one: Listed, detail: Detail) -> str:
    facts = one.facts
    tiles = [
        ("trainable parameters", NONE if facts.parameters is None else amount(facts.parameters)),
        ("layers", counted(facts.layers) if facts.layers else NONE),
        ("total rank", counted(facts.total_rank)),
        ("largest rank", counted(facts.largest_rank)),
        ("variance explained", share(detail.mean_explained)),
        ("steps", counted(facts.steps)),
        ("tokens", NONE if facts.tokens is None else amount(facts.tokens)),
        ("all files", size(facts.size)),
    ]
    return element(
        "dl",
        *(element("div", element("dt", said(name)), element("dd", value)) for name, value in tiles),
        class_="tiles",
    )


def _loading_notes(one: Listed, server: Server) -> str:
    largest = one.facts.largest_rank
    told = (
        "Unless it is a folder, the base model is asked for at the same HF_ENDPOINT: this server hands that on if it "
        "has an upstream."
    )
    if server.needs_token:
        told = f"This server asks for a token: put yours where the code has three dots. {told}"
    if largest:
        told += f" An engine that serves the adapter needs max_lora_rank of at least {largest}."
    return note(told)


def _others(one: Listed, around: Around) -> str:
    parts = []
    if around.sweep is not None:
        key, count = around.sweep
        link = element("a", said(f"{count:,} artifacts came of the same pass"), href=f"/sweep/{key}")
        parts.append(element("p", link, ": same model, tokenizer, data and solver, other settings."))
    if around.others:
        parts.append(revisions_table(one, around.others))
    else:
        parts.append(element("p", said(f"{one.revision.repo_id} has no other revision.")))
    if around.children:
        links = [element("li", element("a", said(child.name), href=artifact_url(child))) for child in around.children]
        parts.append(element("p", "Made of this one:") + element("ul", *links))
    if around.near:
        parts.append(choose_form(one, around.near))
    return "".join(parts)


def choose_form(one: Listed, near: Sequence[Listed], picked: str | None = None) -> str:
    """Return the form that chooses what to compare an artifact with."""
    options = [
        element("option", said(_choice(other)), value=other.name, selected=other.name == picked)
        for other in near[:_MOST_CHOICES]
    ]
    select = element("label", said(f"Compare {one.name} with"), for_="b") + element(
        "select", *options, id="b", name="b"
    )
    hidden = f'<input type="hidden" name="a" value="{said(one.name)}">'
    button = element("button", "Compare", type="submit")
    fields = element("div", select, class_="field wide"), element("div", button, class_="field go")
    form = element("form", hidden, *fields, action="/compare", method="get", class_="choose")
    more = len(near) - _MOST_CHOICES
    return form + (note(f"{more:,} more: tick two in the catalogue.") if more > 0 else "")


def _choice(other: Listed) -> str:
    ended = shown(other.facts.status, 30).replace("_", " ")
    return other.name if other.facts.status == DONE else f"{other.name} ({ended})"
