"""`index.html`: one file that needs no network and no script, for who wants to know what a sweep has found."""

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

import eva_dist
from eva_dist.render.style import CSS, SCRIPT
from eva_dist.render.templates import template_environment
from eva_dist.render.words import counted
from eva_dist.report.compare_points import Comparison
from eva_dist.report.files import SWEEP_FILE, TABLE_FILE
from eva_dist.report.findings import findings, name, title, trouble
from eva_dist.report.maps import agreement_matrices, numbers_of_points, rank_maps
from eva_dist.report.page_rows import effect_rows, shared_facts
from eva_dist.report.plotted import axis_of_settings, budget_figure, setting_figure
from eva_dist.report.settings import short
from eva_dist.report.table import FIGURES, figure_cells, setting_cells

_TEMPLATES = template_environment(Path(__file__).parent / "templates")


def page(found: Comparison) -> str:
    """Return the page."""
    telling, others = shared_facts(found)
    short_names = short(found.varied)
    return _TEMPLATES.get_template("page.html").render(
        title=title(found),
        trouble=trouble(found),
        findings=findings(found),
        points_counted=counted(len(found.points), "point"),
        settings=[short_names[key] for key in found.varied],
        figure_heads=list(FIGURES),
        points=[
            (place, point, figures, setting_cells(point, found), figure_cells(figures))
            for place, (point, figures) in enumerate(zip(found.points, found.figures, strict=True))
        ],
        reference=found.reference if len(found.compared) > 1 else None,
        reference_name=None if found.reference is None else name(found, found.reference),
        failures=[
            (f"{name(found, place)}: {point.status.replace('_', ' ')}".capitalize(), point)
            for place, point in enumerate(found.points)
            if point.artifact is None
        ],
        effects=effect_rows(found),
        matrices=agreement_matrices(found) if len(found.compared) > 1 else [],
        compared=numbers_of_points(found),
        telling_facts=telling,
        other_facts=others,
        other_facts_counted=counted(len(others), "fact"),
        version=eva_dist.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        files=(TABLE_FILE, SWEEP_FILE),
        css=Markup(CSS),
        script=Markup(SCRIPT),
        script_sha256=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        axis=axis_of_settings(found),
        budget=budget_figure(found) if found.compared else None,
        costs=setting_figure(found) if found.compared else None,
        rank_maps=rank_maps(found) if found.compared else "",
    )
