"""`eva-dist derive`: an artifact of other settings from a stored one, with no model and no data."""

import contextlib
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from eva_dist.cli.options import STORE, StoreUrl, check_destination
from eva_dist.cli.overrides import eva_overrides
from eva_dist.cli.terminal import print_outcome


def derive(
    source: Annotated[
        str, typer.Argument(help="Folder, repo_id@revision in the store, s3://..., hf://..., https://...")
    ],
    overrides: Annotated[
        list[str], typer.Argument(metavar="OVERRIDES...", help="Settings of EVA to change, e.g. eva.rho=1.25.")
    ],
    store: StoreUrl = STORE,
    repo_id: Annotated[
        str | None, typer.Option(help="Name of the new artifact; default: the source's.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Its revision; default: e.g. rho1.25-tau0.99-whiten.", show_default=False)
    ] = None,
) -> None:
    """Make an artifact of other settings from a stored one, with no model and no data, if what is stored suffices.

    Exact for whiten, lora_alpha and adjust_scaling_factors: the artifact that a run would give. Smaller r or rho,
    rank_pattern and looser tau reuse the stored vectors: near to a run, and marked as derived. Prints one JSON line.
    """
    check_destination(store, repo_id, revision)
    changes = eva_overrides(overrides)
    with contextlib.redirect_stdout(sys.stderr):
        from eva_dist.transform.derive import derive_and_publish

        outcome = asdict(derive_and_publish(source, changes, store, repo_id, revision))
    print_outcome(outcome, "have not converged to eva.tau; they were taken as they are (eva.on_max_steps=accept)")
