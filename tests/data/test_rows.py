"""Opening data: every format, every refusal with its message, and what the digest depends on."""

import gzip
import json
import re
import subprocess
import sys

import pytest

from eva_dist.config import DataConfig, SampleBy
from eva_dist.data import open_rows
from eva_dist.errors import ConfigError, DataError

TEXTS = ["first row", "second row", "third one\nof two lines"]
CHAT = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "the cat"}]


def texts(config: DataConfig) -> list[str]:
    rows = open_rows(config)
    return [rows[i][config.text_field] for i in range(len(rows))]


def write(folder, kind: str, values=TEXTS) -> str:
    from datasets import Dataset

    path = folder / f"rows.{kind}"
    data = Dataset.from_dict({"text": values})
    if kind in ("txt", "text", "md"):
        path.write_text("\n\n".join(values))
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress("\n\n".join(values).encode()))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps({"text": v}) + "\n" for v in values).encode()))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": v}) + "\n" for v in values))
    elif kind == "json":
        path.write_text(json.dumps([{"text": v} for v in values]))
    elif kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(data.data.table, path, row_group_size=1)
    elif kind == "arrow":
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, data.data.table.schema) as writer:
            writer.write_table(data.data.table)
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["txt", "text", "md", "txt.gz", "jsonl", "jsonl.gz", "json", "parquet", "arrow"])
def test_every_format_gives_the_same_rows_and_digest(tmp_path, write_jsonl, kind, streaming):
    reference = open_rows(DataConfig(path=write_jsonl([{"text": t} for t in TEXTS], "reference.jsonl")))
    config = DataConfig(path=write(tmp_path, kind), streaming=streaming, num_samples=10 if streaming else None)
    rows = open_rows(config)
    assert [rows[i] for i in range(len(rows))] == [{"text": t} for t in TEXTS]
    assert rows.digest == reference.digest and re.fullmatch("[0-9a-f]{64}", rows.digest)
    assert rows.blank == 0
    with pytest.raises(IndexError):
        rows[len(TEXTS)]


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        (SampleBy.line, ["a", "b", "c"]),
        (SampleBy.paragraph, ["a\nb", "c"]),
        (SampleBy.document, ["a\nb\n\nc"]),
    ],
)
def test_sample_by(tmp_path, sample_by, expected):
    (tmp_path / "a.txt").write_text("a\nb\n\nc")
    assert texts(DataConfig(path=str(tmp_path / "a.txt"), sample_by=sample_by)) == expected


def test_glob_and_folder_take_files_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.txt", "10.txt", "2.txt"):
        (tmp_path / name).write_text(f"from {name}")
    expected = [f"from {name}" for name in ("10.txt", "2.txt", "a.txt", "b.txt")]
    assert texts(DataConfig(path=str(tmp_path / "*.txt"))) == expected
    assert texts(DataConfig(path=str(tmp_path))) == expected


def test_relative_and_home_paths(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts(DataConfig(path="a.txt")) == texts(DataConfig(path="~/a.txt")) == ["here"]


def test_a_file_name_with_glob_characters_finds_itself(tmp_path):
    (tmp_path / "a[1] #x.txt").write_text("brackets")
    (tmp_path / "a1 #x.txt").write_text("other")
    assert texts(DataConfig(path=str(tmp_path / "a[1] #x.txt"))) == ["brackets"]


def test_a_folder_reads_the_splits_off_the_names_and_skips_what_is_no_data(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_text(json.dumps({"text": split}))
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert texts(DataConfig(path=str(tmp_path))) == ["train"]
    assert texts(DataConfig(path=str(tmp_path), split="test")) == ["test"]
    # A glob names the files itself: all of them are meant.
    assert texts(DataConfig(path=str(tmp_path / "t*.jsonl"))) == ["test", "train"]


def test_blank_rows_are_left_out_and_counted(write_jsonl):
    rows = [{"text": t} for t in ["", "a", " \n\t", None, "b", ""]]
    opened = open_rows(DataConfig(path=write_jsonl(rows)))
    assert [opened[i]["text"] for i in range(len(opened))] == ["a", "b"]
    assert opened.blank == 4
    assert opened.digest == open_rows(DataConfig(path=write_jsonl([{"text": "a"}, {"text": "b"}], "c.jsonl"))).digest


@pytest.mark.parametrize("streaming", [False, True])
def test_num_samples_counts_usable_rows(write_jsonl, streaming):
    path = write_jsonl([{"text": t} for t in ["", "a", "", "b", "c"]])
    opened = open_rows(DataConfig(path=path, num_samples=2, streaming=streaming))
    assert [opened[i]["text"] for i in range(len(opened))] == ["a", "b"]
    assert opened.blank == 2
    assert opened.digest == open_rows(DataConfig(path=write_jsonl([{"text": "a"}, {"text": "b"}], "ab.jsonl"))).digest
    assert opened.digest != open_rows(DataConfig(path=path)).digest


def test_digest_depends_on_order_and_fields_used_alone(write_jsonl):
    one = [{"text": "a", "other": 1, "body": "x"}, {"text": "b", "other": 2, "body": "y"}]
    path = write_jsonl(one)
    digest = open_rows(DataConfig(path=path)).digest
    assert digest != open_rows(DataConfig(path=write_jsonl(one[::-1], "reversed.jsonl"))).digest
    assert digest == open_rows(DataConfig(path=write_jsonl([{**r, "other": 9} for r in one], "nine.jsonl"))).digest
    assert digest == open_rows(DataConfig(path=path, batch_size=9, step_size=3, shuffle=False, seed=5)).digest
    assert digest != open_rows(DataConfig(path=path, text_field="body")).digest
    assert digest != open_rows(DataConfig(path=path, prompt_field="body")).digest
    # Where one text ends and the next begins counts.
    joined = open_rows(DataConfig(path=write_jsonl([{"text": "ab"}], "joined.jsonl"))).digest
    assert joined != digest


def test_digest_of_files_joined_in_order_is_that_of_one_file(tmp_path):
    (tmp_path / "parts").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "parts" / f"{i}.jsonl").write_text(json.dumps({"text": text}))
    parts = open_rows(DataConfig(path=str(tmp_path / "parts")))
    assert parts.digest == open_rows(DataConfig(path=write(tmp_path, "parquet"))).digest


def test_chat_digest_ignores_the_nulls_that_arrow_adds(tmp_path, write_jsonl):
    from datasets import Dataset

    chats = [CHAT, [{**CHAT[0], "name": "ann"}, CHAT[1]]]
    padded = [[{"role": m["role"], "content": m["content"], "name": m.get("name")} for m in c] for c in chats]
    Dataset.from_dict({"text": padded}).to_parquet(tmp_path / "c.parquet")
    from_json = open_rows(DataConfig(path=write_jsonl([{"text": c} for c in chats])))
    assert open_rows(DataConfig(path=str(tmp_path / "c.parquet"))).digest == from_json.digest
    assert from_json[0]["text"][1]["content"] == "the cat"


def test_rows_hold_the_prompt_too(write_jsonl):
    path = write_jsonl([{"q": "Q", "text": "A", "z": 1}])
    assert open_rows(DataConfig(path=path, prompt_field="q"))[0] == {"q": "Q", "text": "A"}


def refusal(config: DataConfig) -> str:
    with pytest.raises(DataError) as caught:
        open_rows(config)
    assert isinstance(caught.value, ConfigError)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["no.jsonl", "./no", "/no/such", "~/no", "no*", "a/b/c", "no.txt.gz"])
def test_a_missing_path_is_not_taken_for_a_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(DataConfig(path=name))
    assert message.startswith(f"data.path={name} does not exist") and str(tmp_path) in message


def test_hub_failure_says_what_datasets_said(monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(DataConfig(path="nobody/nothing-here"))
    assert message.startswith("data.path=nobody/nothing-here cannot be read: ConnectionError: Couldn't reach")


def test_hub_id_gets_name_revision_and_split(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return datasets.Dataset.from_dict({"text": ["a"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert texts(DataConfig(path="team/set", name="en", revision="v1", split="test")) == ["a"]
    assert asked == {"path": "team/set", "name": "en", "revision": "v1", "split": "test", "streaming": False}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "JSON parse error"),
        ("bad.parquet", b"hello", "Parquet file size is 5 bytes"),
        ("bad.txt", b"\xff\xfe\x00", "can't decode byte 0xff"),
        ("bad.arrow", b"hello", "data.path"),
        ("bad.txt.gz", gzip.compress(b"some text", mtime=0)[:-9], "data.path"),
    ],
)
def test_unreadable_file(tmp_path, name, content, said, streaming):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(DataConfig(path=str(path), streaming=streaming, num_samples=5))
    assert message.startswith(f"data.path={path} cannot be read: ") and said in message


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_split_lists_the_splits(write_jsonl, streaming):
    message = refusal(DataConfig(path=write_jsonl([{"text": "a"}]), split="nope", streaming=streaming, num_samples=1))
    assert message.startswith("data.split=nope must be one of the splits of data.path=") and "['train']" in message


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("key", ["text_field", "prompt_field"])
def test_missing_field_lists_the_columns(write_jsonl, key, streaming):
    path = write_jsonl([{"text": "a", "body": "b"}])
    message = refusal(DataConfig(path=path, streaming=streaming, num_samples=5, **{key: "nope"}))
    assert message.startswith(f"data.{key}=nope must be a column") and "which has: text, body;" in message


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": 3}], "row 0 holds int 3"),
        ([{"text": ["a", "b"]}], "row 0 holds list ['a', 'b']"),
        ([{"text": CHAT}, {"text": [{"from": "me", "value": "x"}]}], "row 1 holds list [{'from': 'me'"),
        ([{"text": "a"}, {"text": CHAT}], "must hold str in every row, as in those before, but row 1 holds list"),
    ],
)
def test_wrong_type_of_text(write_jsonl, rows, said):
    message = refusal(DataConfig(path=write_jsonl(rows)))
    assert message.startswith("data.text_field=text must hold ") and said in message


def test_wrong_type_of_prompt(write_jsonl):
    message = refusal(DataConfig(path=write_jsonl([{"text": "a", "q": 1}]), prompt_field="q"))
    assert message.startswith("data.prompt_field=q must hold text, but row 0 holds int 1")
    message = refusal(DataConfig(path=write_jsonl([{"text": CHAT, "q": "x"}], "c.jsonl"), prompt_field="q"))
    assert "text when data.prompt_field is set" in message and "set data.prompt_field=null" in message


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_no_rows(tmp_path, name, streaming):
    (tmp_path / name).write_text("")
    message = refusal(DataConfig(path=str(tmp_path / name), streaming=streaming, num_samples=5))
    assert "has no rows" in message


@pytest.mark.parametrize("blank", ["  ", None, [{"role": "user", "content": " "}]])
def test_all_rows_blank(write_jsonl, blank):
    message = refusal(DataConfig(path=write_jsonl([{"text": blank}] * 2)))
    assert message.startswith("data.text_field=text is blank in all 2 rows")


def test_mixed_formats(tmp_path):
    write(tmp_path, "txt")
    write(tmp_path, "jsonl")
    message = refusal(DataConfig(path=str(tmp_path / "*")))
    assert "mixes .jsonl, .txt files" in message and "narrow it" in message
    assert "mixes" in refusal(DataConfig(path=str(tmp_path)))


def test_unknown_format(tmp_path):
    (tmp_path / "a.csv").write_text("text\na")
    assert "names .csv files; it must name .txt" in refusal(DataConfig(path=str(tmp_path / "a.csv")))


def test_folder_without_data_names_its_folders(tmp_path):
    (tmp_path / "inner").mkdir()
    assert "it has the folders inner" in refusal(DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("ok", [False, True])
def test_progress_bars_are_off_and_their_setting_comes_back(write_jsonl, monkeypatch, capfd, disabled, ok):
    import datasets

    monkeypatch.setattr(datasets.utils.tqdm, "_hf_datasets_progress_bars_disabled", disabled, raising=False)
    (datasets.disable_progress_bars if disabled else datasets.enable_progress_bars)()
    try:
        config = DataConfig(path=write_jsonl([{"text": "a" if ok else ""}]))
        if ok:
            open_rows(config)
        else:
            refusal(config)
        assert datasets.are_progress_bars_disabled() is disabled
        assert capfd.readouterr().err == ""
    finally:
        datasets.enable_progress_bars()


@pytest.mark.parametrize("streaming", [False, True])
def test_local_files_need_no_network(write_jsonl, monkeypatch, streaming):
    import datasets

    calls = []
    monkeypatch.setattr(datasets.load, "get_session", lambda: calls.append("session"))
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    open_rows(DataConfig(path=write_jsonl([{"text": "a"}]), streaming=streaming, num_samples=1))
    assert calls == [] and datasets.config.HF_UPDATE_DOWNLOAD_COUNTS is True


def test_import_does_not_import_datasets():
    code = "import sys, eva_dist.data; sys.exit(any(m in sys.modules for m in ('datasets', 'transformers', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
