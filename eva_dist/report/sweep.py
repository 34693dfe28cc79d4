"""`write_sweep`: the whole report of a sweep, beside its points."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eva_dist.report.compare_points import Comparison, compare
from eva_dist.report.files import PAGE_FILE, SWEEP_FILE, TABLE_FILE, json_bytes, manifest, put, table_bytes
from eva_dist.report.page import page
from eva_dist.report.read_multirun import read_points
from eva_dist.report.table import text_table


@dataclass(frozen=True)
class SweepReport:
    """A sweep's report as it lies in `folder`: `sweep.json` (here `manifest`), `sweep.parquet`, `index.html`."""

    folder: Path
    comparison: Comparison
    manifest: dict[str, Any]

    @property
    def page(self) -> Path:
        """Where the page is."""
        return self.folder / PAGE_FILE

    def table(self) -> str:
        """Return the points as a text table, a line each."""
        return text_table(self.comparison)


def write_sweep(folder: Path) -> SweepReport:
    """Compare the points of a Hydra multirun folder, and write the report into it.

    A point that failed, never began, or whose artifact is gone or damaged is reported as such. Each file is
    replaced atomically, the manifest last; an earlier report is written over.

    Raises:
        ConfigError: `folder` holds no point.
        StoreError: a file cannot be written.
    """
    found = compare(read_points(folder))
    beside = {TABLE_FILE: table_bytes(found), PAGE_FILE: page(found).encode()}
    described = json_bytes(manifest(found, beside))
    for name, content in {**beside, SWEEP_FILE: described}.items():
        put(folder / name, content)
    return SweepReport(folder, found, json.loads(described))
