"""What a chat is made of, before any template sees it: roles, tools, and what kind of chat it is."""

import json
import re
from contextlib import suppress
from typing import Any

from eva_dist.data.source import wrong_type

THOUGHTS = re.compile(r"\s*(?:(<[^<>/]+>|\[[^\[\]/]+\])\s*)?.*?(</[^<>]+>|\[/[^\[\]]+\])", re.DOTALL)
"""Content that begins with a block of its own: thoughts, as `<think>...</think>` or `[THINK]...[/THINK]`."""


def without_nulls(value: Any) -> Any:
    """Drop keys that hold None, at any depth: arrow adds them where only other rows' messages have the key."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def tools_as_json(value: Any, name: str, number: int) -> str | None:
    """Return a row's tools as JSON, None if there are none; data sets hold them as JSON or as a list.

    Raises:
        DataError: neither.
    """
    tools = without_nulls(value)
    if isinstance(value, str) and value.strip():
        with suppress(ValueError):
            tools = json.loads(value)
    if not tools:
        return None
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        may_be = "a list of tools [{...}, ...] (JSON schemas), or one as JSON"
        raise wrong_type("tools_field", name, number, value, may_be, "mend the rows, or rename the column")
    return json.dumps(tools)


def chat_shape(messages: list[dict[str, Any]], has_tools: bool) -> Any:
    """Return what templates look at in a chat, beside its words: chats that are alike in it are rendered alike.

    That is who answers whom, which keys messages have, whether they say something and whether it begins with thoughts;
    how often is not part of it, so that even a large data set has few shapes.
    """
    traits = [None, *(_message_traits(message) for message in messages), None]
    return has_tools, frozenset(zip(traits, traits[1:], strict=False))


def _message_traits(message: dict[str, Any]) -> Any:
    content = message.get("content") or ""
    keys = tuple(key for key, value in message.items() if value is not None)
    has_block = ("</" in content or "[/" in content) and THOUGHTS.match(content) is not None  # the search is dear
    return message["role"], keys, not content or content.isspace(), has_block
