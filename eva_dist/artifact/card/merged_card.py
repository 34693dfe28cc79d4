"""What the model card says of an artifact whose statistics are the sum of others'."""

from collections.abc import Sequence

from eva_dist.artifact.facts import LayerFacts, Provenance

_MOST_LISTED = 50


def merged_section(provenance: Provenance) -> str:
    """Return the section on what was merged; empty for any other artifact."""
    if not provenance.merged_from:
        return ""
    rows = [
        f"| `{_plain(source['fingerprint'])}` | {source['weight']:g} | {source['steps']:,} | {source['tokens']:,} | "
        f"`{_plain(source['data']['path'])}` |"
        for source in provenance.merged_from
    ]
    return "\n".join(
        [
            "## Merged",
            "",
            f"Merged by `eva-dist merge` from {len(rows)} artifacts of `solver=covariance`: what each had summed up of",
            "its layers' inputs was added, so these are the components of one run over all of their data. With another",
            "weight than 1, each row of that source counts so many times. No model was run: steps, tokens and seconds",
            "are the sums of the sources', and there are no cosines and no convergence by step of the whole. A layer",
            "counts as converged if it had converged in every source.",
            "",
            "| fingerprint | weight | steps | tokens | data |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def merged_warning(layers: Sequence[LayerFacts]) -> str:
    """Return the warning that names layers that had not converged in every source; empty if there are none."""
    names = [facts.name for facts in layers if not facts.converged]
    if not names:
        return ""
    more = len(names) - _MOST_LISTED
    listed = ", ".join(f"`{_plain(name)}`" for name in names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
    return f"""> [!WARNING]
> **Not shown to have converged**: {len(names)} of {len(layers)} layers had not converged in every source, or saw no
> token there. All of the sources' rows count in them; whether more data would turn their components is not known.
> They are {listed}."""


def _plain(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("`", "'")
