"""A row -> one text and the character spans of it whose tokens are masked in the labels.

Plain text has no labels. With `data.prompt_field` the prompt is masked. Of a chat, all but the
content of the assistant's turns is masked (`chat_template.py` finds them).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eva_dist.config import DataConfig
from eva_dist.data.chat_rows import without_nulls
from eva_dist.data.chat_template import find_turn, render, turns_not_found
from eva_dist.data.source import tools_field
from eva_dist.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """One text to tokenise. `masked_spans` are (start, end) characters, ascending, not overlapping.

    `add_special_tokens` is False for a rendered chat: its template has written them already.
    """

    text: str
    masked_spans: tuple[tuple[int, int], ...]
    has_labels: bool
    add_special_tokens: bool = True

    @property
    def is_all_masked(self) -> bool:
        """Whether not one character counts, however much of the text is used."""
        return self.has_labels and sum(end - start for start, end in self.masked_spans) == len(self.text)


def sample_from_row(
    row: dict[str, Any], config: DataConfig, tokenizer: "PreTrainedTokenizerBase", wants_labels: bool = True
) -> Sample:
    """Turn a row of `Rows` into a sample; without `wants_labels` every token counts, and nothing is masked.

    Raises:
        DataError: chat messages without a chat template, or with one whose turns cannot be found.
    """
    text = row[config.text_field]
    if isinstance(text, list):
        return _sample_from_chat(without_nulls(text), row.get(tools_field(config)), config, tokenizer, wants_labels)
    if config.prompt_field is None:
        return Sample(text, (), has_labels=False)
    prompt = row[config.prompt_field] or ""
    return Sample(prompt + text, ((0, len(prompt)),) if prompt and wants_labels else (), has_labels=wants_labels)


def _sample_from_chat(
    messages: list[dict[str, Any]], tools: str | None, config: DataConfig, tokenizer: Any, wants_labels: bool
) -> Sample:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"data.text_field={config.text_field} holds chat messages, but the tokenizer of model.name_or_path has no "
            "chat template; it must have one; use the model's instruction-tuned tokenizer, or a column of text"
        )
    text = render(messages, tools, config, tokenizer)
    if not wants_labels:
        return Sample(text, (), has_labels=False, add_special_tokens=False)
    turns = [
        find_turn(messages, turn, text, tools, config, tokenizer)
        for turn, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("content", "").strip()
    ]
    masked, end = [], 0
    for start, turn_end in sorted(turns):
        if start < end:
            raise turns_not_found(config)
        masked.append((end, start))
        end = turn_end
    masked.append((end, len(text)))
    return Sample(text, tuple(span for span in masked if span[0] < span[1]), has_labels=True, add_special_tokens=False)
