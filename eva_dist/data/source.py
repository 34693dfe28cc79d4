"""`data.path` -> a `datasets` object: which files it names, which builder reads them, what went wrong.

A local file, glob or folder wins over a hub id of the same name. Files that the user names
(alone or by a glob) all belong to the split `train`; within a folder the file names say the
split as on the hub (`test-00000.parquet`), so that a folder's test set is not streamed unasked.
`datasets` is imported inside functions: it takes a second, and `import eva_dist` need not wait.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_dist.config import DataConfig
from eva_dist.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BUILDERS = {
    "": "text",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_EXTENSIONS = tuple(extension for extension in _BUILDERS if extension)
_COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
# What `save_to_disk` and a hub repository put beside the data.
_BESIDE_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "readme.md"}
_TOOLS_FIELD = "tools"
"""The column that holds a chat's tools where `data.tools_field` names none: data sets and trainers agree on it."""


class NarrowTypesError(DataError):
    """What a column holds in one file does not fit into what it holds in the first: look at all files' types."""


@dataclass(frozen=True)
class Fields:
    """Which columns are read: every file has the `required` ones, `optional` ones are null where there is none."""

    required: tuple[str, ...]
    optional: tuple[str, ...]

    @classmethod
    def of(cls, config: DataConfig) -> "Fields":
        """Return the columns that these settings name."""
        if config.prompt_field is not None:  # chats hold their own prompt: these are text, with no use for tools
            return cls((config.prompt_field, config.text_field), ())
        tools = tools_field(config)
        return cls((config.text_field,), () if tools == config.text_field else (tools,))

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.required, *self.optional]


def tools_field(config: DataConfig) -> str:
    """Return the name of the column that holds a chat's tools, if there is one."""
    return config.tools_field or _TOOLS_FIELD


@dataclass(frozen=True)
class Source:
    """An open data set; `columns` names all that it has (a stream: all that have been met), in use or not."""

    data: "Dataset | IterableDataset"
    is_local: bool

    @property
    def columns(self) -> list[str]:
        """The names of all columns, as far as they are known."""
        if self.is_local:
            from eva_dist.data.only_fields import column_names

            if named := column_names(self.data.info):
                return named
        return list(self.data.column_names or [])


def load(config: DataConfig, widened: bool = False) -> Source:
    """Open the data set that `config.path` names; iterable when `config.streaming`, else random access.

    Of local files only the `Fields` are read. `widened` looks at all files for types that hold all they have; else
    those of the first file must do, which costs no second look.

    Raises:
        DataError: nothing is there, it cannot be read, or it has no such split.
        NarrowTypesError: the columns of some file do not fit into those of the first.
    """
    files = find_files(config.path)
    with explained(config):
        if files is not None:
            return Source(_load_files(config, files, widened), is_local=True)
        from datasets import load_dataset

        found = load_dataset(
            config.path,
            name=config.name,
            revision=config.revision,
            split=config.split,
            streaming=config.streaming,
        )
        return Source(found, is_local=False)


def _load_files(config: DataConfig, files: Mapping[str, Sequence[str]], widened: bool) -> "Dataset | IterableDataset":
    from eva_dist.data.only_fields import BUILDERS, widened_features

    kind, fields = _builder_kind(config.path, [file for some in files.values() for file in some]), Fields.of(config)
    options: dict[str, Any] = {"required": list(fields.required), "optional": list(fields.optional)}
    if kind == "text":
        options = {"sample_by": config.sample_by.value}
    elif kind == "json":
        options["parse_agent_traces"] = False
    absolute = {split: [os.path.abspath(file) for file in some] for split, some in files.items()}
    if widened and kind != "text":
        in_use = absolute.get(config.split) or next(iter(absolute.values()))
        options["features"] = widened_features(kind, in_use, fields)
    # `datasets` globs the names it is given; a file called `a[1].txt` must find itself.
    escaped = {split: [glob.escape(file) for file in some] for split, some in absolute.items()}
    builder = BUILDERS[kind](data_files=escaped, dataset_name=kind, **options)
    if config.streaming:
        stream = builder.as_streaming_dataset(split=config.split)
        # A stream of JSON arrays knows no types at first, and would not notice that those of a later file are others.
        has_no_types = stream.features is None and not widened and sum(map(len, files.values())) > 1
        return _load_files(config, files, widened=True) if has_no_types and kind == "json" else stream
    builder.download_and_prepare()
    return builder.as_dataset(split=config.split)


def find_files(path: str) -> Mapping[str, Sequence[str]] | None:
    """Return the local files that `path` names, sorted, by split; None when `path` must be a hub id.

    Raises:
        DataError: `path` looks like a local one and nothing is there.
    """
    local = os.path.expanduser(path)
    if os.path.isfile(local):
        return {"train": [local]}
    if os.path.isdir(local):
        return _files_of_folder(path, Path(local))
    matches = sorted(match for match in glob.glob(local, recursive=True) if os.path.isfile(match))
    if matches:
        return {"train": matches}
    if _looks_local(path):
        raise DataError(
            f"data.path={path} does not exist: it must be a file, a glob that matches files, a folder of data files "
            f"or a hub id; check the spelling, relative paths start at {os.getcwd()}"
        )
    return None


@contextmanager
def explained(config: DataConfig) -> Iterator[None]:
    """Silence progress bars, and turn whatever `datasets` raises into a `DataError` of one line."""
    import datasets

    were_disabled = datasets.are_progress_bars_disabled()
    if not were_disabled:
        datasets.disable_progress_bars()
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # `datasets` promises no exception types: OSError, ValueError, pyarrow's, its own
        raise _data_error(config, error) from error
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()


def _data_error(config: DataConfig, error: Exception) -> DataError:
    from datasets.arrow_writer import SchemaInferenceError

    from eva_dist.data.only_fields import MissingColumn, UnreadableFile

    root: BaseException = error
    while root.__cause__ is not None and not isinstance(root, MissingColumn | UnreadableFile):
        root = root.__cause__
    if isinstance(root, MissingColumn):
        return missing_column(config, root.name, root.columns, root.file)
    if isinstance(root, UnreadableFile):
        is_narrow = "ouldn't cast" in root.why
        why = root.why if _is_all(config, root.file) and not is_narrow else f"{root.file}: {root.why}"
        return _cannot_be_read(config, why, NarrowTypesError if is_narrow else DataError)
    said = " ".join(str(root).split()) or type(root).__name__
    # StopIteration is what the json builder makes of an empty file.
    if isinstance(root, SchemaInferenceError | StopIteration):
        return DataError(f"data.path={config.path} has no rows; give data with at least one row of text")
    if re.match(r"(Unknown|Bad) split", said):
        return DataError(
            f"data.split={config.split} must be one of the splits of data.path={config.path}; choose one: {said}"
        )
    is_narrow = said.startswith("Schema at index")  # JSON arrays are compared only when all are read
    return _cannot_be_read(config, f"{type(root).__name__}: {said}", NarrowTypesError if is_narrow else DataError)


def missing_column(config: DataConfig, name: str, columns: Iterable[str], file: str | None = None) -> DataError:
    """Return the refusal of data, or of one file of them, without a column that the settings name."""
    key = next(key for key in ("text_field", "prompt_field", "tools_field") if getattr(config, key) == name)
    has = f"which has: {', '.join(columns)}"
    if file is not None and not _is_all(config, file):
        has = f"but {file} has: {', '.join(columns)}"
    return DataError(
        f"data.{key}={name} must be a column of data.path={config.path}, {has}; set data.{key} to one of them"
    )


def wrong_type(key: str, name: str | None, row: int, value: Any, may_be: str, remedy: str) -> DataError:
    """Return the refusal of what a row holds in the column that `data.<key>` names."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DataError(
        f"data.{key}={name} must hold {may_be}, but row {row} holds {type(value).__name__} {shown}; {remedy}"
    )


def _is_all(config: DataConfig, file: str) -> bool:
    """Tell whether a file is all that the data are: then `data.path` names it."""
    return os.path.abspath(os.path.expanduser(config.path)) == os.path.abspath(file)


def _cannot_be_read(config: DataConfig, why: str, kind: type[DataError]) -> DataError:
    return kind(
        f"data.path={config.path} cannot be read: {why}; it must be readable "
        f"{', '.join(_EXTENSIONS)} or a hub id that can be reached; mend the file, or fetch the data set first"
    )


def _files_of_folder(path: str, folder: Path) -> Mapping[str, Sequence[str]]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    names = [name for name in names if _file_extension(name) in _EXTENSIONS and name.lower() not in _BESIDE_DATA]
    if not names:
        below = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        hint = f"; it has the folders {', '.join(below[:5])}: name one of them" if below else ""
        raise DataError(f"data.path={path} must be a folder that holds {', '.join(_EXTENSIONS)} files{hint}")
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(_split_of(name), []).append(str(folder / name))
    return splits


def _split_of(name: str) -> str:
    from datasets.data_files import SPLIT_KEYWORDS

    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((str(split) for split, keywords in SPLIT_KEYWORDS.items() if words & set(keywords)), "train")


def _builder_kind(path: str, files: Sequence[str]) -> str:
    extensions = sorted({_file_extension(file) for file in files})
    unknown = [extension for extension in extensions if extension not in _BUILDERS]
    if unknown:
        raise DataError(
            f"data.path={path} names {', '.join(unknown)} files; it must name {', '.join(_EXTENSIONS)} "
            "(also compressed) files; convert them, or narrow the glob"
        )
    builders = {_BUILDERS[extension] for extension in extensions}
    if len(builders) > 1:
        raise DataError(
            f"data.path={path} mixes {', '.join(extension or 'no extension' for extension in extensions)} files; it "
            "must name files of one format; narrow it with a glob such as *.jsonl"
        )
    return builders.pop()


def _file_extension(file: str) -> str:
    name = os.path.basename(file).lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]


def _looks_local(path: str) -> bool:
    is_named_like_data = _file_extension(path) in _EXTENSIONS or path.lower().endswith(_COMPRESSIONS)
    # A hub id is name or namespace/name.
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or glob.has_magic(path) or is_named_like_data
