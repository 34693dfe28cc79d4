"""Chats rendered by the tokenizer's template, and where in the text the assistant's turns stand.

Templates seldom carry `{% generation %}` markers (and transformers then only warns and masks everything), so the
turns are found by rendering: what stands around a mark in a turn's place is the template's, what stands there in
the chat itself is the turn. Templates differ in what a mark may stand for, so there are several tries:

| rendered with and without the mark | finds turns of templates that |
|---|---|
| the messages up to the turn | render earlier turns unchanged |
| the whole chat | drop thoughts from earlier turns, count messages, put the last one first |
| the whole chat, marks where thoughts and answer stand | write thoughts anew, or add empty ones where there are none |
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from eva_dist.config import DataConfig
from eva_dist.data.chat_rows import THOUGHTS
from eva_dist.errors import DataError

# Plain letters: a template that trims, or writes JSON, leaves it whole.
_MARK = "EvaDistTurnContentMark"
# Some templates (Llama 3) write today's date; the stream must be the same tomorrow. This is the date they fall back to.
_FIXED_TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{ '' }}"


def render(messages: list[dict[str, Any]], tools: str | None, config: DataConfig, tokenizer: Any) -> str:
    """Return a chat as text; `tools` (JSON) are handed to the template if it takes any.

    Raises:
        DataError: the template refuses the chat.
    """
    try:
        handed = json.loads(tools) if tools is not None and takes_tools(tokenizer) else None
        template = tokenizer.get_chat_template(tools=handed)
        if "strftime_now" in template:
            template = _FIXED_TODAY + template
        return tokenizer.apply_chat_template(messages, tools=handed, chat_template=template, tokenize=False)
    except Exception as error:  # a template is a program of its own: jinja's errors, KeyError, TypeError
        said = " ".join(str(error).split())
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"data.text_field={config.text_field}: the tokenizer's chat template refuses messages with the roles "
            f"{roles}: {said}; they must be what the template allows; mend the rows, map the roles with data.role_map, "
            "or use a column of text"
        ) from error


def find_turn(
    messages: list[dict[str, Any]], turn: int, text: str, tools: str | None, config: DataConfig, tokenizer: Any
) -> tuple[int, int]:
    """Return where in `text`, the whole rendered chat, the content of message `turn` stands.

    Raises:
        DataError: it cannot be found.
    """

    def rendered(some: list[dict[str, Any]]) -> str:
        return render(some, tools, config, tokenizer)

    prefix, following = messages[:turn], messages[turn + 1 :]
    message = messages[turn]
    up_to_turn = rendered([*prefix, message]) if following else text
    found = _between_marks(up_to_turn, rendered([*prefix, {**message, "content": _MARK}]))
    # The prefix without what follows the turn: a template may write an end-of-text after the last turn only.
    if found is not None and text.startswith(up_to_turn[: found[1]]):
        return found
    for content in _marked_contents(message["content"]):
        try:
            marked = rendered([*prefix, {**message, "content": content}, *following])
        except DataError:  # the mark is not what the template wants to see there
            continue
        if (found := _between_marks(text, marked)) is not None:
            return found
    raise turns_not_found(config)


def turns_not_found(config: DataConfig) -> DataError:
    """Return the refusal of a chat whose turns cannot be told from what the template writes."""
    return DataError(
        f"data.text_field={config.text_field}: the prefixes of a chat do not nest in the tokenizer's chat template "
        "(messages up to an assistant's turn must render to the beginning of the whole chat), nor does the whole chat "
        "hold the turn's content in one piece, so its turns cannot be found for the label mask; use a template that "
        "renders what a turn says unchanged, a column of text, or eva.use_label_mask=false"
    )


def _marked_contents(content: str) -> Iterator[str]:
    """Yield what may stand for a content: a mark, or one for its thoughts and one for its answer."""
    yield _MARK
    if thoughts := THOUGHTS.match(content):
        opened, closed = thoughts.groups()
        yield f"{opened or ''}{_MARK}{closed}{_MARK}"


def _between_marks(text: str, marked: str) -> tuple[int, int] | None:
    """Return what of a text stands where another has marks, the first to the last; None if the rest differs."""
    before, mark, rest = marked.partition(_MARK)
    after = rest.rpartition(_MARK)[2]
    start, end = len(before), len(text) - len(after)
    is_framed = mark and text.startswith(before) and text.endswith(after) and start <= end
    return (start, end) if is_framed else None


def takes_tools(tokenizer: Any) -> bool:
    """Tell whether the chat template has a use for tools."""
    return "tools" in template_variables(tokenizer.get_chat_template(tools=[{}]))


@lru_cache(maxsize=16)
def template_variables(template: str) -> frozenset[str]:
    """Return what a chat template wants to be handed: the variables that it reads and does not set itself.

    A template that cannot be parsed wants nothing: rendering will tell what is wrong with it.
    """
    from jinja2 import TemplateSyntaxError, meta, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which transformers adds to jinja."""

        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(extensions=[Generation, "jinja2.ext.loopcontrols"])
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(template)))
    except TemplateSyntaxError:
        return frozenset()
