"""`data.path` -> a `datasets` object: which files it names, which builder reads them, what went wrong.

A local file, glob or folder wins over a hub id of the same name. Files that the user names
(alone or by a glob) all belong to the split `train`; within a folder the file names say the
split as on the hub (`test-00000.parquet`), so that a folder's test set is not streamed unasked.
`datasets` is imported inside functions: it takes a second, and `import eva_dist` need not wait.
"""

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


def load(config: DataConfig) -> "Dataset | IterableDataset":
    """Open the data set that `config.path` names; iterable when `config.streaming`, else random access.

    Raises:
        DataError: nothing is there, it cannot be read, or it has no such split.
    """
    files = find_files(config.path)
    with explained(config):
        from datasets import load_dataset

        if files is None:
            return load_dataset(
                config.path,
                name=config.name,
                revision=config.revision,
                split=config.split,
                streaming=config.streaming,
            )
        builder = _builder(config.path, [file for some in files.values() for file in some])
        options: dict[str, dict[str, Any]] = {
            "text": {"sample_by": config.sample_by.value},
            "json": {"parse_agent_traces": False},
        }
        # `datasets` globs the names it is given; a file called `a[1].txt` must find itself.
        escaped = {split: [glob.escape(os.path.abspath(file)) for file in some] for split, some in files.items()}
        with _uncounted():
            return load_dataset(
                builder,
                data_files=escaped,
                split=config.split,
                streaming=config.streaming,
                **options.get(builder, {}),
            )


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
        raise _explain(config, error) from error
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()


@contextmanager
def _uncounted() -> Iterator[None]:
    """Keep `datasets` from reporting a builder's use to the hub: local files need no network, nor its timeouts."""
    from datasets import config as settings

    counted = settings.HF_UPDATE_DOWNLOAD_COUNTS
    settings.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        settings.HF_UPDATE_DOWNLOAD_COUNTS = counted


def _explain(config: DataConfig, error: Exception) -> DataError:
    from datasets.arrow_writer import SchemaInferenceError

    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = " ".join(str(root).split()) or type(root).__name__
    # StopIteration is what the json builder makes of an empty file.
    if isinstance(root, SchemaInferenceError | StopIteration):
        return DataError(f"data.path={config.path} has no rows; give data with at least one row of text")
    if re.match(r"(Unknown|Bad) split", said):
        return DataError(
            f"data.split={config.split} must be one of the splits of data.path={config.path}; choose one: {said}"
        )
    return DataError(
        f"data.path={config.path} cannot be read: {type(root).__name__}: {said}; it must be readable "
        f"{', '.join(_EXTENSIONS)} or a hub id that can be reached; mend the file, or fetch the data set first"
    )


def _files_of_folder(path: str, folder: Path) -> Mapping[str, Sequence[str]]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    names = [name for name in names if _extension(name) in _EXTENSIONS and name.lower() not in _BESIDE_DATA]
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


def _builder(path: str, files: Sequence[str]) -> str:
    extensions = sorted({_extension(file) for file in files})
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


def _extension(file: str) -> str:
    name = os.path.basename(file).lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]


def _looks_local(path: str) -> bool:
    is_named_like_data = _extension(path) in _EXTENSIONS or path.lower().endswith(_COMPRESSIONS)
    # A hub id is name or namespace/name.
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or glob.has_magic(path) or is_named_like_data
