"""Build an artifact: every file of it, into one folder."""

import shutil
from pathlib import Path
from typing import Any

from eva_dist.artifact.adapter import write_adapter
from eva_dist.artifact.card.card import write_card
from eva_dist.artifact.card.figures import write_plots
from eva_dist.artifact.facts import Provenance, layer_facts
from eva_dist.artifact.file_names import COVARIANCE_FILE
from eva_dist.artifact.manifest import write_manifest
from eva_dist.artifact.tables import write_tables
from eva_dist.artifact.tensors import write_tensors
from eva_dist.calibration.controller import PointResult
from eva_dist.config import EvaConfig

__all__ = ["Provenance", "build_artifact"]


def build_artifact(folder: Path, result: PointResult, eva: EvaConfig, provenance: Provenance) -> dict[str, Any]:
    """Write every file of the artifact into the empty folder `folder`, and return the manifest.

    The layer names of `result.state.plan` must be those of the base model that users load.
    The same `result` and `eva` give the same bytes in the tensor files and the tables.

    Raises:
        OSError: the folder cannot be written.
    """
    layers = layer_facts(result)
    passed = provenance.derived_from["eva"] if provenance.derived_from else {}
    write_tensors(folder, layers, eva.whiten)
    write_adapter(folder, layers, eva, provenance)
    write_tables(folder, layers, result.state)
    write_plots(folder, layers, result.state, eva.r, passed.get("tau", eva.tau))
    if result.covariance is not None:
        shutil.copyfile(result.covariance, folder / COVARIANCE_FILE)
    write_card(folder, layers, result, eva, provenance)
    return write_manifest(folder, layers, result, eva, provenance)
