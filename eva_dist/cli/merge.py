"""`eva-dist merge`: one artifact of several, as if all had been one run."""

import contextlib
import re
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from eva_dist.cli.options import STORE, StoreUrl, check_destination
from eva_dist.cli.overrides import eva_overrides
from eva_dist.cli.terminal import print_outcome

_SETTING_WORD = re.compile(r"[a-z_]+(\.[a-z_]+)*=")


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE SOURCE... [eva.key=value...]",
            help="Artifacts that keep covariance.safetensors: folder, file:// URL, or repo_id@revision in the store; "
            "then settings of EVA, where the sources differ in them or others are wanted, e.g. eva.rho=1.25.",
        ),
    ],
    weight: Annotated[
        list[float] | None,
        typer.Option(help="How often each row of a source counts; one for each source, in their order."),
    ] = None,
    store: StoreUrl = STORE,
    repo_id: Annotated[
        str | None, typer.Option(help="Name of the new artifact; default: the sources'.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Its revision; default: merged-<fingerprint>.", show_default=False)
    ] = None,
) -> None:
    """Merge artifacts of several data sets or runs into the one that a single run over all of it would have given.

    Exact, with no model and no data. The sources must be of one base model and keep what was summed up: computed with
    solver=covariance solver.keep_covariance=true. Prints one JSON line.
    """
    check_destination(store, repo_id, revision)
    changes = eva_overrides([word for word in sources if _SETTING_WORD.match(word)])
    artifacts = [word for word in sources if not _SETTING_WORD.match(word)]
    with contextlib.redirect_stdout(sys.stderr):
        from eva_dist.transform.merge import merge_and_publish

        outcome = asdict(merge_and_publish(artifacts, weight or [], changes, store, repo_id, revision))
    print_outcome(outcome, "had not converged to eva.tau in every source; manifest.json names them")
