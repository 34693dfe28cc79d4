"""Builders of `datasets` that read only the columns in use, and name the file that they fail at.

The packaged builders take the columns of the first file for those of all files, and refuse a file that has
one more, or an unused one of another type. Here unused columns are dropped before anything is compared.
"""

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from datasets import Features, Json, List, Value
from datasets.builder import Key
from datasets.packaged_modules.arrow import arrow
from datasets.packaged_modules.json import json as json_lines
from datasets.packaged_modules.parquet import parquet
from datasets.packaged_modules.text import text
from datasets.utils.file_utils import xopen

from eva_dist.data.source import Fields


class UnreadableFile(Exception):
    """A file cannot be read; `why` says what is wrong in it. The reason is its `__cause__`."""

    def __init__(self, file: str, why: str) -> None:
        super().__init__(file, why)
        self.file, self.why = file, why


class MissingColumn(Exception):
    """A file lacks a column that is in use; `columns` are those that it has."""

    def __init__(self, file: str, name: str, columns: Sequence[str]) -> None:
        super().__init__(file, name, columns)
        self.file, self.name, self.columns = file, name, tuple(columns)


@dataclass
class _FieldsConfig(datasets.BuilderConfig):
    """`required` columns every file must have; `optional` ones are null where a file has none."""

    required: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)


class _NamesFile:
    """Reads one file after the other, so that whatever goes wrong is said with the file's name."""

    def _generate_tables(self, **options: Any) -> Iterator[tuple[Key, pa.Table]]:
        lists = {name: value for name, value in options.items() if isinstance(value, list)}
        names = lists.get("original_files") or lists.get("base_files") or lists["files"]
        for at, name in enumerate(names):
            one_file = {**options, **{key: value[at : at + 1] for key, value in lists.items()}}
            try:
                for batch, (_, table) in enumerate(self._tables_of_file(name, one_file)):
                    yield Key(at, batch), table
            except (MissingColumn, json_lines.FullReadDisallowed):  # the latter is no failure: `datasets` reads on
                raise
            except Exception as error:  # pyarrow's, the decompressor's, `datasets`' own
                raise UnreadableFile(name, self._explain_failure(one_file, error)) from error

    def _tables_of_file(self, name: str, one_file: dict[str, Any]) -> Iterator[tuple[Any, pa.Table]]:
        yield from super()._generate_tables(**one_file)  # type: ignore[misc]

    def _explain_failure(self, one_file: dict[str, Any], error: Exception) -> str:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


class _OnlyFields(_NamesFile):
    """Keeps the columns in use; the names of all that were met go into `info.description`, which is cached as well."""

    has_fixed_columns = True
    config: Any
    info: Any
    _seen: dict[str, None]

    def _split_generators(self, dl_manager: Any) -> Any:
        self._seen = {}
        splits = super()._split_generators(dl_manager)  # type: ignore[misc]
        found = self.info.features or {}
        self._tell_columns(self._seen or found)
        if found:
            self.info.features = Features({name: found[name] for name in found if name in self._wanted_columns})
        return splits

    def _tables_of_file(self, name: str, one_file: dict[str, Any]) -> Iterator[tuple[Any, pa.Table]]:
        """Yield the tables of a file; a column that none of them has is missed before the last one is handed out."""
        self._seen = {}
        held = None
        for keyed in super()._tables_of_file(name, one_file):
            if self.has_fixed_columns:
                self._refuse_missing(name)
            if held is not None:
                yield held
            held = keyed
        if held is not None:
            self._refuse_missing(name)
            self._tell_columns(self._seen)
            yield held

    def _cast_table(self, pa_table: pa.Table, **options: Any) -> pa.Table:
        # a column that is wanted as JSON is made up by `datasets` where a file has none: of nulls alone
        names = pa_table.column_names
        made_up = {n for n in self.config.optional if n in names and pa_table[n].null_count == len(pa_table)}
        self._seen |= dict.fromkeys(name for name in names if name not in made_up)
        if paths := options.get("json_field_paths"):
            options["json_field_paths"] = [path for path in paths if path[0] in self._wanted_columns]
        kept = pa_table.select([name for name in names if name in self._wanted_columns])
        for name in self.config.required:
            if name not in kept.column_names and self.info.features is None:
                kept = kept.append_column(name, pa.nulls(len(kept), pa.string()))
        return super()._cast_table(kept, **options)  # type: ignore[misc]

    def _refuse_missing(self, file: str) -> None:
        for name in self.config.required:
            if name not in self._seen:
                raise MissingColumn(file, name, list(self._seen))

    def _tell_columns(self, names: Iterable[str]) -> None:
        self.info.description = json.dumps(list(dict.fromkeys([*column_names(self.info), *names])))

    @property
    def _wanted_columns(self) -> list[str]:
        return [*self.config.required, *self.config.optional]


def _with_fields(config: type) -> type:
    """Return the settings of a builder, with those of `_FieldsConfig`."""
    return make_dataclass(config.__name__, [], bases=(config, _FieldsConfig))


class JsonFields(_OnlyFields, json_lines.Json):
    """JSON and JSON lines."""

    BUILDER_CONFIG_CLASS = _with_fields(json_lines.JsonConfig)
    has_fixed_columns = False  # a key may turn up in a later row first

    def _explain_failure(self, one_file: dict[str, Any], error: Exception) -> str:
        """Name the row: pyarrow counts from the start of a block, and the block is not known."""
        paths = [path for files in one_file["files_iterables"] for path in files]
        found = next((trouble for path in paths if (trouble := find_bad_row(path))), None)
        return found or super()._explain_failure(one_file, error)


class ParquetFields(_OnlyFields, parquet.Parquet):
    """Parquet."""

    BUILDER_CONFIG_CLASS = _with_fields(parquet.ParquetConfig)


class ArrowFields(_OnlyFields, arrow.Arrow):
    """Arrow streams and files."""

    BUILDER_CONFIG_CLASS = _with_fields(arrow.ArrowConfig)


class TextLines(_NamesFile, text.Text):
    """Plain text, whose one column is `text`."""


def column_names(info: Any) -> list[str]:
    """Return the names of all columns that were met, in use or not."""
    return list(json.loads(info.description or "[]"))


BUILDERS: dict[str, Any] = {"json": JsonFields, "parquet": ParquetFields, "arrow": ArrowFields, "text": TextLines}


def widened_features(kind: str, files: Sequence[str], fields: Fields) -> Features:
    """Return types that the columns in use of all files fit into, where those of the first file were too narrow.

    Parquet and arrow files say their types, which are united. Of JSON, what is not text is kept as JSON.
    """
    if kind != "json":
        schemas = [_read_schema(kind, file) for file in files]
        kept = [pa.schema([each for each in schema if each.name in fields.names]) for schema in schemas]
        return Features.from_arrow_schema(pa.unify_schemas(kept, promote_options="permissive"))
    builder = JsonFields(data_files={"train": [glob.escape(file) for file in files]}, required=[*fields.required])
    rows = builder.as_streaming_dataset(split="train")
    first = {name: next((row[name] for row in rows if row[name] is not None), None) for name in fields.required}
    plain: dict[str, Any] = {
        name: List(Json()) if isinstance(value, list) else Value("string") for name, value in first.items()
    }
    return Features(plain | {name: Json() for name in fields.optional})


def _read_schema(kind: str, file: str) -> pa.Schema:
    if kind == "parquet":
        return pa.parquet.read_schema(file)
    with open(file, "rb") as opened:
        try:
            return pa.ipc.open_stream(opened).schema
        except (OSError, pa.ArrowInvalid):
            return pa.ipc.open_file(opened).schema


def find_bad_row(path: str) -> str | None:
    """Return which row of a JSON file, counted from 0, is no JSON or holds a lone surrogate; None if none is."""
    with xopen(path, "rb") as opened:
        is_array = opened.read(1) == b"["
    row = -1
    with xopen(path, "rb") as opened:
        try:
            lines = (json.loads(line) if line.strip() else None for line in opened)
            for row, value in enumerate(json.load(opened) if is_array else lines):  # noqa: B007
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start].encode("unicode_escape").decode()
            return f"row {row} holds the lone surrogate {half}, half of a character"
        except ValueError as error:
            return f"JSON parse error: {error}" if is_array else f"row {row + 1}: JSON parse error: {error}"
    return None
