"""`index.html`: one file that needs no network and no script, for who wants to know what a sweep has found."""

import base64
import hashlib
from datetime import UTC, datetime

import eva_dist
from eva_dist.render.heat_map import HATCH
from eva_dist.render.markup import element, said
from eva_dist.render.style import CSS, SCRIPT
from eva_dist.report.compare_points import Comparison
from eva_dist.report.files import SWEEP_FILE, TABLE_FILE
from eva_dist.report.findings import findings, name, title, trouble
from eva_dist.report.maps import agreement_maps, rank_maps
from eva_dist.report.page_tables import effects_table, failures, points_table, shared_table
from eva_dist.report.plotted import axis_of_settings, budget_figure, setting_figure


def page(found: Comparison) -> str:
    """Return the page."""
    heading = title(found)
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        _policy(),
        element("title", said(f"{heading} · eva_dist")),
        element("style", CSS),
    ]
    body = [HATCH, element("header", element("h1", said(heading)), _headline(found)), element("main", *_main(found))]
    body += [_footer(), f"<script>{SCRIPT}</script>"]
    return f'<!doctype html>\n<html lang="en">{element("head", *head)}{element("body", *body)}</html>\n'


def _policy() -> str:
    """Return a policy under which our own script runs and nothing else does, or is loaded."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return f'<meta http-equiv="Content-Security-Policy" content="{policy}">'


def _headline(found: Comparison) -> str:
    wrong = trouble(found)
    items = [element("li", said(wrong), class_="bad")] if wrong else []
    items += [element("li", said(sentence)) for sentence in findings(found)]
    if not items:
        items = [element("li", "One point: there is nothing to compare it with.")]
    return element("ul", *items, class_="findings")


def _main(found: Comparison) -> list[str]:
    sections = [_section("Points", points_table(found), _reference(found), _explained())]
    if any(point.artifact is None for point in found.points):
        sections.append(_section("Points without an artifact", failures(found)))
    if found.effects:
        sections.append(_section("What each setting changes", effects_table(found)))
    if found.compared:
        sections.append(_section("Explained variance against budget", budget_figure(found)))
        sections.append(_section(f"Steps and seconds against {axis_of_settings(found)}", setting_figure(found)))
        sections.append(_section("Ranks by point and layer", rank_maps(found)))
    if len(found.compared) > 1:
        sections.append(_section("Agreement between points", _note(_AGREEMENT), agreement_maps(found)))
    return [*sections, _section("What the points share", shared_table(found))]


_AGREEMENT = (
    "Overlap: for each layer in which both points keep components, how much of the smaller subspace lies in the "
    "other, ‖VₐVᵦᵀ‖²/min(rankₐ, rankᵦ), where the rows of V are the kept vectors, orthonormalised (whitening scales "
    "them); then the mean over layers. 1: one contains the other; about max(rankₐ, rankᵦ)/inputs: no more alike than "
    "by chance. Equal ranks: the share of the layers that both points target whose ranks are equal."
)


def _explained() -> str:
    return _note(
        "Explained: each layer's kept components explain a share of the total variance of the layer's inputs (the sum "
        "of their explained-variance ratios, 0 for a layer of rank 0); total explained variance is the mean of these "
        "shares over the layers. Each point estimates it from the tokens that its layers saw until they converged, so "
        "small differences are those of samples. Parameters: LoRA's A and B, rank × (inputs + outputs), summed over "
        "the layers. Steps and pass time: SVD updates, and seconds from the first forward to the last allocation, of "
        "the pass that made the artifact, also where a point was answered from the store (cached)."
    )


def _reference(found: Comparison) -> str:
    if found.reference is None or len(found.compared) < 2:
        return ""
    return _note(
        f"Overlap and same ranks compare a point with {name(found, found.reference)}, the reference: the most careful "
        "point there is, by layers, then tau, rho, r and parameters. How they are defined is said under Agreement."
    )


def _note(text: str) -> str:
    return element("p", said(text), class_="note")


def _section(heading: str, *content: str) -> str:
    return element("section", element("h2", said(heading)), *content)


def _footer() -> str:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    links = [element("a", said(file), href=file) for file in (TABLE_FILE, SWEEP_FILE)]
    return element(
        "footer",
        element("p", said(f"eva-dist {eva_dist.__version__}, {made}. The numbers: "), " and ".join(links), "."),
    )
