"""Files whose unused columns differ, columns in use that grow, and the names of files that cannot be read."""

import gzip
import json
import os

import pytest

from eva_dist.config import DataConfig
from eva_dist.data import open_rows
from eva_dist.errors import DataError


def write(folder, name: str, rows: list[dict]) -> None:
    """Write rows in the format that the name's ending says, each file with its own types."""
    import pyarrow as pa
    import pyarrow.parquet

    path = folder / name
    if name.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".arrow"):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder, kind: str, streaming: bool = False, **settings) -> list[dict]:
    config = DataConfig(
        path=str(folder / f"*.{kind}"), streaming=streaming, num_samples=99 if streaming else None, **settings
    )
    rows = open_rows(config)
    return [rows[i] for i in range(len(rows))]


KINDS = ["jsonl", "json", "jsonl.gz", "parquet", "arrow"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"x": 1}),
        ({"x": 1}, {}),
        ({"x": 1}, {"x": "s"}),
        ({"x": {"a": 1}}, {"x": "s"}),
        ({"x": {"a": 1}}, {"x": {"b": [1]}}),
        ({"x": [1]}, {"x": [{"a": None}], "y": {"z": 2.5}}),
    ],
)
def test_unused_columns_may_differ_between_files(tmp_path, kind, streaming, one, other):
    write(tmp_path, f"1.{kind}", [{**one, "text": "a"}])
    write(tmp_path, f"2.{kind}", [{"text": "b", **other}])
    assert read(tmp_path, kind, streaming) == [{"text": "a"}, {"text": "b"}]


def test_unused_columns_may_differ_within_a_file(tmp_path):
    long = "x" * 10_000
    rows = [{"text": long, "n": 1}] * 1100 + [
        {"text": long, "n": "one", "more": {"a": 1}}
    ] * 10  # 10 MB are read at once
    write(tmp_path, "1.jsonl", rows)
    assert len(read(tmp_path, "jsonl")) == 1110


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_a_column_in_use_is_named(tmp_path, kind, streaming):
    write(tmp_path, f"1.{kind}", [{"text": "a"}])
    write(tmp_path, f"2.{kind}", [{"txt": "b", "x": 1}])
    with pytest.raises(DataError) as caught:
        read(tmp_path, kind, streaming)
    assert str(caught.value) == (
        f"data.text_field=text must be a column of data.path={tmp_path}/*.{kind}, but {tmp_path}/2.{kind} has: txt, x; "
        "set data.text_field to one of them"
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_messages_of_a_later_file_may_have_more_keys(tmp_path, kind, streaming):
    first = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    later = [{"role": "user", "content": "q", "name": "ann"}, {"role": "assistant", "content": "b", "call": {"n": 1}}]
    write(tmp_path, f"1.{kind}", [{"text": first}])
    write(tmp_path, f"2.{kind}", [{"text": later}])
    spoken = [
        [{key: value for key, value in message.items() if value is not None} for message in row["text"]]
        for row in read(tmp_path, kind, streaming)
    ]
    assert spoken == [first, later]


def test_optional_keys_and_line_ends_and_byte_order_marks(tmp_path):
    (tmp_path / "1.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b", "q": "Q"}\r\n')
    (tmp_path / "2.jsonl").write_bytes(b'\xef\xbb\xbf{"q": "P", "text": "c"}\n')
    assert read(tmp_path, "jsonl", prompt_field="q") == [
        {"q": None, "text": "a"},
        {"q": "Q", "text": "b"},
        {"q": "P", "text": "c"},
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("2.jsonl", b'{"text": "a"}\n\n{"text": "\\ud800 b"}\n', "row 2 holds the lone surrogate \\ud800"),
        ("2.json", b'[{"text": "a"}, {"text": "\\udc12"}]', "row 1 holds the lone surrogate \\udc12"),
        ("2.jsonl.gz", gzip.compress(b'{"text": "\\ud800"}\n', mtime=0), "row 0 holds the lone surrogate \\ud800"),
        ("2.jsonl", b'{"text": "a"}\n{"text": \n', "row 1: JSON parse error: Expecting value"),
        ("2.parquet", b"hello", "Parquet file size is 5 bytes"),
        ("2.arrow", b"hello", ""),
        ("2.txt", b"\xff\xfe\x00", "can't decode byte 0xff"),
        ("2.txt.gz", gzip.compress(b"some text", mtime=0)[:-9], "EOFError"),
    ],
)
def test_what_cannot_be_read_under_a_glob_is_named(tmp_path, name, content, said, streaming):
    kind = name.removeprefix("2.")
    if "txt" in kind:
        text = b"a good file"
        (tmp_path / f"1.{kind}").write_bytes(gzip.compress(text) if kind.endswith(".gz") else text)
    else:
        write(tmp_path, f"1.{kind}", [{"text": "good"}])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path, kind, streaming)
    message = str(caught.value)
    assert message.startswith(f"data.path={tmp_path}/*.{kind} cannot be read: {tmp_path}/{name}: "), message
    assert said in message


def test_only_the_columns_in_use_are_kept_on_disk(tmp_path):
    write(tmp_path, "1.jsonl", [{"text": "a", "big": "x" * 100}])
    opened = open_rows(DataConfig(path=str(tmp_path / "1.jsonl")))
    assert opened.data.column_names == ["text"] and opened.unused == ("big",)
    assert open_rows(DataConfig(path=os.path.relpath(tmp_path / "1.jsonl"))).unused == ("big",)  # from the cache
