"""A row -> one text and the character spans of it whose tokens are masked in the labels.

Plain text has no labels. With `data.prompt_field` the prompt is masked. Of a chat, all but the
content of the assistant's turns is masked. Templates seldom carry `{% generation %}` markers (and
transformers then only warns and masks everything), so the turns are found by rendering: the
messages up to a turn are rendered with the turn's content and again with a mark in its place; what
stands around the mark is the template's, what stands between is the turn.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eva_dist.config import DataConfig
from eva_dist.data.rows import without_nulls
from eva_dist.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Plain letters: a template that trims, or writes JSON, leaves it whole.
_MARK = "EvaDistTurnContentMark"
# Some templates (Llama 3) write today's date; the stream must be the same tomorrow. This is the date they fall back to.
_FIXED_TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{ '' }}"


@dataclass(frozen=True)
class Sample:
    """One text to tokenise. `masked_spans` are (start, end) characters, ascending, not overlapping.

    `add_special_tokens` is False for a rendered chat: its template has written them already.
    """

    text: str
    masked_spans: tuple[tuple[int, int], ...]
    has_labels: bool
    add_special_tokens: bool = True


def sample_from_row(row: dict[str, Any], config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> Sample:
    """Turn a row of `Rows` into a sample.

    Raises:
        DataError: chat messages without a chat template, or with one whose turns cannot be found.
    """
    text = row[config.text_field]
    if isinstance(text, list):
        return _sample_from_chat(without_nulls(text), config, tokenizer)
    if config.prompt_field is None:
        return Sample(text, (), has_labels=False)
    prompt = row[config.prompt_field] or ""
    return Sample(prompt + text, ((0, len(prompt)),) if prompt else (), has_labels=True)


def _sample_from_chat(messages: list[dict[str, Any]], config: DataConfig, tokenizer: Any) -> Sample:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"data.text_field={config.text_field} holds chat messages, but the tokenizer of model.name_or_path has no "
            "chat template; it must have one; use the model's instruction-tuned tokenizer, or a column of text"
        )
    text = _render(messages, config, tokenizer)
    masked, end = [], 0
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("content", "").strip():
            continue
        start, turn_end = _find_turn(messages[: turn + 1], text, config, tokenizer)
        if start < end:
            raise _not_nested(config)
        masked.append((end, start))
        end = turn_end
    masked.append((end, len(text)))
    return Sample(text, tuple(span for span in masked if span[0] < span[1]), has_labels=True, add_special_tokens=False)


def _find_turn(prefix: list[dict[str, Any]], text: str, config: DataConfig, tokenizer: Any) -> tuple[int, int]:
    """Return where in `text`, the whole rendered chat, the content of the last message of `prefix` stands."""
    rendered = _render(prefix, config, tokenizer)
    marked = _render([*prefix[:-1], {**prefix[-1], "content": _MARK}], config, tokenizer)
    before, mark, after = marked.partition(_MARK)
    start, end = len(before), len(rendered) - len(after)
    is_framed = mark and rendered.startswith(before) and rendered.endswith(after) and start <= end
    # The prefix without what follows the turn: a template may write an end-of-text after the last turn only.
    if not is_framed or not text.startswith(rendered[:end]):
        raise _not_nested(config)
    return start, end


def _render(messages: list[dict[str, Any]], config: DataConfig, tokenizer: Any) -> str:
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _FIXED_TODAY + template
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception as error:  # a template is a program of its own: jinja's errors, KeyError, TypeError
        said = " ".join(str(error).split())
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"data.text_field={config.text_field}: the tokenizer's chat template refuses messages with the roles "
            f"{roles}: {said}; they must be what the template allows; mend the rows, or use a column of text"
        ) from error


def _not_nested(config: DataConfig) -> DataError:
    return DataError(
        f"data.text_field={config.text_field}: the prefixes of a chat do not nest in the tokenizer's chat template "
        "(messages up to an assistant's turn must render to the beginning of the whole chat), so its turns cannot be "
        "found for the label mask; use a template that renders earlier turns unchanged, or a column of text"
    )
