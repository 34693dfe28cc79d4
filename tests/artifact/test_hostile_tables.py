"""Tables that were made to fill memory: refused before they are read."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eva_dist.artifact.layer_table import spectrum_of
from eva_dist.artifact.tables import coded, read_columns
from eva_dist.errors import IntegrityError
from eva_dist.gateway.catalogue.detail import read_detail
from eva_dist.store.snapshot import FileEntry, Snapshot, read_snapshot
from tests.gateway.page_artifacts import manifest_of


def parquet(options=None, **columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, store_schema=False, **(options or {}))
    return sink.getvalue().to_pybytes()


def repeated(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([text]))


def spectrum(name: str, rows: int) -> bytes:
    """So many components of one layer, in few bytes."""
    numbers = {key: np.zeros(rows) for key in ("explained_variance_ratio", "step_converged", "kept")}
    return parquet(layer=repeated(name, rows), component=np.arange(rows, dtype=np.int32), **numbers)


def read_page(content: bytes, file: str = "spectrum.parquet", **changes):
    """What a page reads of an artifact with this table."""
    manifest = manifest_of(**changes) | {"files": {file: {"sha256": "ab" * 32, "size": len(content)}}}
    snapshot: Snapshot = read_snapshot(json.dumps(manifest).encode())

    class Other:
        def read(self, entry: FileEntry) -> bytes:
            return content

    return read_detail(Other(), snapshot)


def test_a_text_that_many_rows_share_is_in_memory_once():
    """115 kB of such a file were 2.5 GB of text."""
    content = parquet(layer=repeated("x" * 1000, 1_000_000), component=np.zeros(1_000_000, dtype=np.int8))
    assert len(content) < 200_000
    table = read_columns(content, ["layer", "component"])
    assert table.num_rows == 1_000_000 and table.nbytes < 10_000_000
    assert [len(text) for text in coded(table["layer"])[0]] == [1000]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (parquet(layer=["a", "b", "c"], n=[1, 2, 3]), "3 rows, must be at most 2"),
        (parquet(layer=["a"], n=[[1]]), "its column n holds no plain values"),
        (parquet(layer=["a"], m=[1]), "it has no column n"),
        (parquet({"compression": "zstd"}, layer=["a"], n=[1]), "it is packed with ZSTD"),
        (b"x" * (64 * 2**20 + 1), "67,108,865 bytes, must be at most 67,108,864"),
    ],
    ids=["rows", "list", "missing", "codec", "bytes"],
)
def test_what_is_no_table_of_these_columns_is_refused(content, said):
    with pytest.raises(ValueError, match=said):
        read_columns(content, ["layer", "n"], most_rows=2)


def test_unpacked_columns_that_are_too_large_are_refused():
    content = parquet({"use_dictionary": False}, layer=["y" * 1000] * 70_000, n=np.zeros(70_000))
    assert len(content) < 5_000_000
    with pytest.raises(ValueError, match="it unpacks to 70,"):
        read_columns(content, ["layer", "n"])


@pytest.mark.parametrize("of", [pa.binary(), pa.large_string(), pa.large_binary()])
def test_a_text_of_another_type_is_in_memory_once_too(of):
    """The file's own words say what Arrow makes of a column: as bytes it was unpacked row by row."""
    sink = pa.BufferOutputStream()
    texts = repeated("x" * 1000, 100_000).cast(of)
    pq.write_table(pa.table({"layer": texts, "n": np.zeros(100_000)}), sink)
    table = read_columns(sink.getvalue().to_pybytes(), ["layer", "n"])
    assert table.num_rows == 100_000 and table.nbytes < 10_000_000


def test_numbers_where_names_belong_are_refused():
    with pytest.raises(ValueError, match="some rows lack their name"):
        coded(read_columns(parquet(layer=[1]), ["layer"])["layer"])


def test_texts_where_numbers_belong_are_refused():
    name = next(iter(manifest_of()["layers"]))
    content = parquet(layer=[name], explained_variance_ratio=["0.5"], step_converged=[1], kept=[True])
    with pytest.raises(IntegrityError, match="it holds texts where numbers belong"):
        spectrum_of(content, manifest_of())
    columns = dict.fromkeys(("component", "explained_variance_ratio", "step_converged", "kept"), [b"\xff"])
    assert "it holds texts where numbers belong" in str(read_page(parquet(layer=[name], **columns)).problems)


def test_a_row_without_a_name_is_refused():
    table = read_columns(parquet(layer=["a", None], n=[1, 2]), ["layer", "n"])
    with pytest.raises(ValueError, match="some rows lack their name"):
        coded(table["layer"])


def test_a_page_draws_no_more_than_the_manifest_can_mean():
    name = "model.layers.0.self_attn.q_proj"  # of rank 16 at most, one of 9 layers
    for content, said in (
        (spectrum(name, 9 * 16 + 1), "145 rows, must be at most 144"),
        (spectrum(name, 17), "components or ratios that cannot be"),
        (spectrum("another", 3), "'another', which is no layer of the manifest"),
    ):
        assert said in str(read_page(content).problems)
    assert len(read_page(spectrum(name, 16)).spectra[0].medians) == 16


def test_no_matrix_is_made_for_layers_and_components_without_end():
    """Rows of many layers in their first component, and one in its last."""
    layers = {f"h.{at}.q": {"rank": 1, "max_rank": 4096, "in_features": 9, "out_features": 9} for at in range(2000)}
    components = np.array([0] * 1999 + [4095])
    numbers = {key: np.zeros(2000) for key in ("explained_variance_ratio", "step_converged", "kept")}
    detail = read_page(parquet(layer=list(layers), component=components, **numbers), layers=layers)
    assert "2,000 layers of 4,096 components are more than a page draws" in str(detail.problems)


def test_a_convergence_has_a_row_a_step_and_group():
    changes = {"steps": 10, "file": "convergence.parquet"}  # 6 groups in 3 blocks
    most = parquet(input_group=repeated("model.layers.0.mlp.down_proj", 60), step=np.arange(60) % 10)
    more = parquet(input_group=repeated("model.layers.0.mlp.down_proj", 61), step=np.zeros(61))
    assert read_page(most, **changes).convergence
    assert "61 rows, must be at most 60" in str(read_page(more, **changes).problems)


def test_show_reads_no_more_ratios_than_the_layers_can_have():
    manifest = manifest_of()
    name = next(iter(manifest["layers"]))
    assert spectrum_of(spectrum(name, 3), manifest).ratios == {name: [0.0, 0.0, 0.0]}
    for content, said in (
        (spectrum(name, 9 * 16 + 1), "145 rows, must be at most 144"),
        (spectrum("z", 1), "'z', which is no layer"),
    ):
        with pytest.raises(IntegrityError, match=said):
            spectrum_of(content, manifest)


def test_reading_starts_no_thread():
    """Arrow's threads that start as the process ends abort it, one time in four: `show --json | head`."""
    code = (
        "import pyarrow.parquet, sys, os; from eva_dist.artifact.tables import read_columns; "
        "before = len(os.listdir('/proc/self/task')); "
        "read_columns(sys.stdin.buffer.read(), ['layer', 'component', 'kept']); "
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=spectrum("a", 100), capture_output=True, check=True)
    assert ran.stdout == b"0\n"
