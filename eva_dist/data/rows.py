"""The usable rows of the data set: checked once, counted, digested, then random access from arrow.

One pass over the fields used refuses what cannot become text, leaves blank rows out and
computes the digest, so the stream behind it never meets a surprise. The digest is over values
and their order alone: the same rows in another format, file or chunking have the same digest.
Roles are mapped (`data.role_map`) before anything else looks at them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from eva_dist.config import DataConfig
from eva_dist.data.chat_rows import chat_shape, tools_as_json, without_nulls
from eva_dist.data.source import (
    Fields,
    NarrowTypesError,
    Source,
    explained,
    load,
    missing_column,
    tools_field,
    wrong_type,
)
from eva_dist.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_PER_READ = 1000


@dataclass(frozen=True)
class Rows:
    """The usable (non-blank) rows, random access; a row holds the text field and, if they are in use, prompt and tools.

    Attributes:
        data: all rows that were read.
        config: what names the fields.
        kept: the usable rows' places in `data`.
        numbers: their numbers in the data set, counted from 0, for messages.
        digest: of all usable rows, but for their tools.
        blank: how many rows were left out among those read.
        tools_digest: of the tools of all usable rows; None if no row has any.
        roles: who speaks in the chats, in the order of appearance; none if the rows are text.
        of_each_shape: one usable row of each kind of chat that there is (`chat_rows.chat_shape`).
        unused: names of the columns that are not read.
    """

    data: "Dataset | Sequence[dict[str, Any]]" = field(repr=False)
    config: DataConfig
    kept: np.ndarray = field(repr=False)
    numbers: np.ndarray = field(repr=False)
    digest: str
    blank: int
    tools_digest: str | None = None
    roles: tuple[str, ...] = ()
    of_each_shape: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        """How many usable rows there are."""
        return len(self.kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row; `IndexError` past the end."""
        return _normalise_row(self.data[int(self.kept[index])], int(self.numbers[index]), self.config)


def open_rows(config: DataConfig) -> Rows:
    """Open `config.path` and keep its first `config.num_samples` usable rows.

    Raises:
        DataError: no data there, unreadable, no such split or field, a field that holds neither
            text nor chat messages, or not one usable row.
    """
    try:
        return _read_all(load(config), config)
    except NarrowTypesError:
        return _read_all(load(config, widened=True), config)


@dataclass
class _Found:
    """What reading the rows has brought to light so far."""

    config: DataConfig
    kept: list[int] = field(default_factory=list)
    seen: int = 0
    kind: type | None = None
    roles: dict[str, None] = field(default_factory=dict)
    shapes: dict[Any, int] = field(default_factory=dict)
    has_tools: bool = False

    def __post_init__(self) -> None:
        self.digest, self.tools_digest = hashlib.sha256(), hashlib.sha256()

    def add(self, row: dict[str, Any]) -> bool:
        """Check the next row and take note of it; tell whether it is usable."""
        number, config = self.seen, self.config
        self.seen += 1
        self.kind = _kind_of_text(row, number, self.kind, config)
        if _is_blank(row[config.text_field]):
            return False
        if self.kind is list:
            row = _normalise_row(row, number, config)
            text, tools = row[config.text_field], row.get(tools_field(config))
            self.has_tools |= tools is not None
            self.tools_digest.update(f"{tools}\n".encode())  # JSON in one line, or None
            self.roles |= dict.fromkeys(message["role"] for message in text)
            self.shapes.setdefault(chat_shape(text, tools is not None), len(self.kept))
        # Values in the order prompt, text; no column names, so that a column's name changes nothing.
        values = [without_nulls(row[name]) for name in Fields.of(config).required]
        self.digest.update(json.dumps(values, sort_keys=True, default=str).encode() + b"\n")
        self.kept.append(number)
        return True


def _read_all(source: Source, config: DataConfig) -> Rows:
    from datasets import Dataset

    wanted = config.num_samples or float("inf")
    taken: list[dict[str, Any]] = []
    found = _Found(config)
    with explained(config):
        for row in _read_rows(source, config):
            if found.add(row) and config.streaming:
                taken.append(_with_json_tools(row, 0, config) if found.kind is list else row)
            if len(found.kept) >= wanted:
                break
        if not found.kept:
            raise _nothing_usable(config, found.seen)
        _refuse_idle_tools_field(config, found, source.columns)
        fields = [name for name in Fields.of(config).names if config.streaming or name in source.data.column_names]
        # A stream cannot be read again at random: keep what was taken of it, in arrow.
        data = Dataset.from_list(taken) if config.streaming else source.data.select_columns(fields)
    numbers = np.asarray(found.kept)
    return Rows(
        data,
        config,
        np.arange(len(taken)) if config.streaming else numbers,
        numbers,
        found.digest.hexdigest(),
        found.seen - len(found.kept),
        found.tools_digest.hexdigest() if found.has_tools else None,
        tuple(found.roles),
        tuple(found.shapes.values()),
        tuple(name for name in source.columns if name not in fields),
    )


def _read_rows(source: Source, config: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the fields used of every row, in order."""
    fields = Fields.of(config).names
    if config.streaming:
        for index, row in enumerate(source.data):
            if index == 0:
                _refuse_missing(config, list(row))
            yield {name: row.get(name) for name in fields}
        return
    here = source.data.column_names
    _refuse_missing(config, here)
    for batch in source.data.select_columns([name for name in fields if name in here]).iter(_ROWS_PER_READ):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _refuse_missing(config: DataConfig, columns: Sequence[str]) -> None:
    if missing := [name for name in Fields.of(config).required if name not in columns]:
        raise missing_column(config, missing[0], columns)


def _refuse_idle_tools_field(config: DataConfig, found: _Found, columns: Sequence[str]) -> None:
    if config.tools_field is None:
        return
    if found.kind is not list:
        raise DataError(
            f"data.tools_field={config.tools_field} must come with chat messages, but data.text_field="
            f"{config.text_field} holds text; set data.tools_field=null"
        )
    if not found.has_tools and config.tools_field not in columns:
        raise missing_column(config, config.tools_field, columns)


def _normalise_row(row: dict[str, Any], number: int, config: DataConfig) -> dict[str, Any]:
    """Return a row with its roles mapped and its tools, if it has any, as JSON; text has no use for them."""
    text = row[config.text_field]
    if not isinstance(text, list):
        idle = Fields.of(config).optional
        return {key: value for key, value in row.items() if key not in idle}
    if config.role_map:
        renamed = [{**message, "role": config.role_map.get(message["role"], message["role"])} for message in text]
        row = {**row, config.text_field: renamed}
    return _with_json_tools(row, number, config)


def _with_json_tools(row: dict[str, Any], number: int, config: DataConfig) -> dict[str, Any]:
    """Return a row as arrow can hold it beside any other: tools are of as many types as there are functions."""
    name = tools_field(config)
    return row if name not in row else {**row, name: tools_as_json(row[name], name, number)}


def _kind_of_text(row: dict[str, Any], index: int, kind: type | None, config: DataConfig) -> type | None:
    """Return what the text field holds (str, list, or None as yet); refuse what is neither, or changes."""
    text = row[config.text_field]
    prompt = None if config.prompt_field is None else row[config.prompt_field]
    if not (prompt is None or isinstance(prompt, str)):
        raise wrong_type("prompt_field", config.prompt_field, index, prompt, "text", "name a column of text")
    if text is None:
        return kind
    if not (isinstance(text, str) or _is_chat(text)):
        may_be = "text, or chat messages [{'role': str, 'content': str}, ...]"
        raise wrong_type("text_field", config.text_field, index, text, may_be, "name another column")
    if isinstance(text, list) and config.prompt_field is not None:
        remedy = "chat messages hold their own prompt: set data.prompt_field=null"
        raise wrong_type("text_field", config.text_field, index, text, "text when data.prompt_field is set", remedy)
    if kind is not None and not isinstance(text, kind):
        may_be = f"{kind.__name__} in every row, as in those before"
        raise wrong_type("text_field", config.text_field, index, text, may_be, "name another column")
    return type(text)


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


def _nothing_usable(config: DataConfig, seen: int) -> DataError:
    if not seen:
        return DataError(f"data.path={config.path} has no rows; give data with at least one row of text")
    return DataError(
        f"data.text_field={config.text_field} is blank in all {seen} rows of data.path={config.path}; "
        "it must hold text in at least one; name another column or other data"
    )
