"""The usable rows of the data set: checked once, counted, digested, then random access from arrow.

One pass over the fields used refuses what cannot become text, leaves blank rows out and
computes the digest, so the stream behind it never meets a surprise. The digest is over values
and their order alone: the same rows in another format, file or chunking have the same digest.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from eva_dist.config import DataConfig
from eva_dist.data.source import explained, load
from eva_dist.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_ROWS_PER_READ = 1000


@dataclass(frozen=True)
class Rows:
    """The usable (non-blank) rows, random access; `row` holds the text field and the prompt field, if set.

    `kept` holds the usable rows' indices in `data`; `blank` counts the rows that were left out
    among those read.
    """

    data: "Dataset | Sequence[dict[str, Any]]" = field(repr=False)
    kept: np.ndarray = field(repr=False)
    digest: str
    blank: int

    def __len__(self) -> int:
        """How many usable rows there are."""
        return len(self.kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row; `IndexError` past the end."""
        return self.data[int(self.kept[index])]


def open_rows(config: DataConfig) -> Rows:
    """Open `config.path` and keep its first `config.num_samples` usable rows.

    Raises:
        DataError: no data there, unreadable, no such split or field, a field that holds neither
            text nor chat messages, or not one usable row.
    """
    source = load(config)
    wanted = config.num_samples or float("inf")
    kept: list[int] = []
    taken: list[dict[str, Any]] = []
    kind, seen, digest = None, 0, hashlib.sha256()
    with explained(config):
        for row in _read(source, config):
            seen += 1
            kind = _check(row, seen - 1, kind, config)
            if _is_blank(row[config.text_field]):
                continue
            digest.update(_canonical(row, config))
            kept.append(seen - 1)
            if config.streaming:
                taken.append(row)
            if len(kept) >= wanted:
                break
        if not kept:
            raise _nothing_usable(config, seen)
        # A stream cannot be read again at random: keep what was taken of it, in arrow.
        data = _materialise(taken) if config.streaming else source.select_columns(_fields(config))
    indices = np.arange(len(taken)) if config.streaming else np.asarray(kept)
    return Rows(data, indices, digest.hexdigest(), seen - len(kept))


def without_nulls(value: Any) -> Any:
    """Drop keys that hold None, at any depth: arrow adds them where only other rows' messages have the key."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _fields(config: DataConfig) -> list[str]:
    return [config.text_field] if config.prompt_field is None else [config.prompt_field, config.text_field]


def _read(source: "Dataset | IterableDataset", config: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the fields used of every row, in order."""
    fields = _fields(config)
    if config.streaming:
        for index, row in enumerate(source):
            if index == 0:
                _refuse_missing(config, list(row))
            yield {name: row.get(name) for name in fields}
        return
    _refuse_missing(config, source.column_names)
    for batch in source.select_columns(fields).iter(_ROWS_PER_READ):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _refuse_missing(config: DataConfig, columns: list[str]) -> None:
    for key in ("text_field", "prompt_field"):
        name = getattr(config, key)
        if name is not None and name not in columns:
            raise DataError(
                f"data.{key}={name} must be a column of data.path={config.path}, which has: {', '.join(columns)}; "
                f"set data.{key} to one of them"
            )


def _check(row: dict[str, Any], index: int, kind: type | None, config: DataConfig) -> type | None:
    """Return what the text field holds (str, list, or None as yet); refuse what is neither, or changes."""
    text = row[config.text_field]
    prompt = None if config.prompt_field is None else row[config.prompt_field]
    if not (prompt is None or isinstance(prompt, str)):
        raise _wrong_type("prompt_field", config.prompt_field, index, prompt, "text", "name a column of text")
    if text is None:
        return kind
    if not (isinstance(text, str) or _is_chat(text)):
        may_be = "text, or chat messages [{'role': str, 'content': str}, ...]"
        raise _wrong_type("text_field", config.text_field, index, text, may_be, "name another column")
    if isinstance(text, list) and config.prompt_field is not None:
        remedy = "chat messages hold their own prompt: set data.prompt_field=null"
        raise _wrong_type("text_field", config.text_field, index, text, "text when data.prompt_field is set", remedy)
    if kind is not None and not isinstance(text, kind):
        may_be = f"{kind.__name__} in every row, as in those before"
        raise _wrong_type("text_field", config.text_field, index, text, may_be, "name another column")
    return type(text)


def _wrong_type(key: str, name: str | None, index: int, value: Any, may_be: str, remedy: str) -> DataError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DataError(
        f"data.{key}={name} must hold {may_be}, but row {index} holds {type(value).__name__} {shown}; {remedy}"
    )


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str | None)
        for message in value
    )


def _is_blank(text: str | list[dict[str, Any]] | None) -> bool:
    if isinstance(text, list):
        return all(_is_blank(message.get("content")) for message in text)
    return text is None or not text.strip()


def _canonical(row: dict[str, Any], config: DataConfig) -> bytes:
    """Values in the order prompt, text; no column names, so that a column's name changes nothing."""
    values = [without_nulls(row[name]) for name in _fields(config)]
    return json.dumps(values, sort_keys=True, default=str).encode() + b"\n"


def _nothing_usable(config: DataConfig, seen: int) -> DataError:
    if not seen:
        return DataError(f"data.path={config.path} has no rows; give data with at least one row of text")
    return DataError(
        f"data.text_field={config.text_field} is blank in all {seen} rows of data.path={config.path}; "
        "it must hold text in at least one; name another column or other data"
    )


def _materialise(taken: list[dict[str, Any]]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_list(taken)
