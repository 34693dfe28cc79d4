"""What a report reads of an artifact: three files, wherever it lies, and no more rows than they can have."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eva_dist.errors import IntegrityError
from eva_dist.report.read_artifact import read_artifact
from eva_dist.store.store import Store
from tests.made_artifacts import write_artifact

READ = ["adapter_model.safetensors", "eva_state_dict.safetensors", "manifest.json", "spectrum.parquet"]


@pytest.fixture
def artifact(tmp_path) -> Path:
    write_artifact(tmp_path / "artifact")
    return tmp_path / "artifact"


def fingerprint_of(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["fingerprint"]


def test_only_the_files_that_are_read_come_from_a_bucket(artifact, tmp_path, monkeypatch):
    """The sums of a large model are gigabytes."""
    monkeypatch.setenv("EVA_DIST_CACHE", str(tmp_path / "cache"))
    Store("memory://reported").publish_folder(artifact, "team/tiny", "v1")
    there = read_artifact("memory://reported/team/tiny@v1", fingerprint_of(artifact))
    assert sorted(path.name for path in there.folder.iterdir()) == READ
    assert there.layers == read_artifact(str(artifact), fingerprint_of(artifact)).layers


def test_more_rows_than_the_layers_can_have_are_not_unpacked(artifact):
    path, bomb = artifact / "spectrum.parquet", pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([pq.read_table(path)] * 2), bomb)
    path.write_bytes(content := bomb.getvalue().to_pybytes())
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"][path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="rows, must be at most"):
        read_artifact(str(artifact), fingerprint_of(artifact))


def test_an_adapter_of_another_size_than_the_manifest_says_is_refused(artifact):
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    layer = next(name for name, one in manifest["layers"].items() if one["rank"])
    manifest["layers"][layer]["out_features"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=f"layer {layer} has .* parameters by manifest.json"):
        read_artifact(str(artifact), fingerprint_of(artifact))
