"""`eva.key=value` words of a command line, typed by the fields of `EvaConfig`: no Hydra, and no guessing."""

import difflib
import math
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, get_type_hints

from eva_dist.config import Config, EvaConfig, config_groups
from eva_dist.errors import ConfigError

_GROUP = "eva"
_PATTERN_KEY = "eva.rank_pattern."
_ELSEWHERE = {
    "store.url": "give --store",
    "artifact.repo_id": "give --repo-id",
    "artifact.revision": "give --revision",
    "model": "the stored vectors are of the source's model; run jobs/precompute.py",
    "data": "the stored vectors are of the source's data; run jobs/precompute.py",
    "solver": "the stored vectors are of the source's solver; run jobs/precompute.py",
    "cluster": "nothing is computed on a cluster here; take it out",
}


def eva_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return EVA's settings that these words give, by field name.

    A value is a bool, an integer, a number, a name, `null`, `[a,b]` or `{pattern: 2}`, as its field has it;
    names may be quoted. As on a job's command line, a word may begin with `+` or `++`, and the pattern may stand in
    the key (`+eva.rank_pattern.q_proj=8`); such words add up.

    Raises:
        ConfigError: one line for each word that is no setting, cannot be set here, or has another type.
    """
    found: dict[str, Any] = {}
    problems: list[str] = []
    hints = get_type_hints(EvaConfig)
    for word in words:
        key, equals, text = _split_word(word)
        group, _, name = key.partition(".")
        if not equals or group != _GROUP or name not in hints:
            problems.append(_explain_refusal(word, key, bool(equals)))
        elif name in found and not (isinstance(found[name], dict) and word.lstrip("+").startswith(_PATTERN_KEY)):
            problems.append(f"{word}: {key} is given twice; give it once")
        else:
            try:
                value = _parse_value(text.strip(), hints[name])
                found[name] = found[name] | value if name in found else value
            except ValueError as error:
                problems.append(f"{word} must be {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def _split_word(word: str) -> tuple[str, str, str]:
    """Split a word into key, `=` and value; a pattern in the key is moved into the value."""
    bare = word[len(word) - len(word.lstrip("+")) :]
    if bare.startswith(_PATTERN_KEY):
        pattern, equals, text = bare.removeprefix(_PATTERN_KEY).rpartition("=")
        quote = "'" if '"' in pattern else '"'
        return _PATTERN_KEY.rstrip("."), equals, f"{{{quote}{pattern}{quote}: {text}}}"
    return bare.partition("=")


def _explain_refusal(word: str, key: str, is_setting: bool) -> str:
    if not is_setting:
        return f"{word} must be eva.key=value; e.g. eva.rho=1.25"
    for known, why in _ELSEWHERE.items():
        if key == known or key.startswith(f"{known}."):
            return f"{word} cannot be derived: {why}"
    groups = config_groups()
    if key.partition(".")[0] in (groups.keys() | get_type_hints(Config).keys()) - {_GROUP}:
        return f"{word} has no meaning here; take it out"
    close = difflib.get_close_matches(key.rpartition(".")[2], get_type_hints(EvaConfig), n=1, cutoff=0.5)
    return f"{word} is no setting{f'; did you mean {_GROUP}.{close[0]}?' if close else ' of EVA; e.g. eva.rho=1.25'}"


def _parse_value(text: str, hint: Any) -> Any:
    """Return the value of a field; a `ValueError` says what it must be."""
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("true or false")
        return text.lower() == "true"
    if hint is int:
        if not re.fullmatch(r"[+-]?\d+", text):
            raise ValueError("a whole number")
        return int(text)
    if hint is float:
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) or not math.isfinite(float(text)):
            raise ValueError("a number")
        return float(text)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if text not in hint.__members__:
            raise ValueError(f"one of {', '.join(hint.__members__)}")
        return hint[text]
    if hint == dict[str, int]:
        return _parse_rank_pattern(text)
    return _parse_names(text)


def _parse_rank_pattern(text: str) -> dict[str, int]:
    """Parse `{pattern: rank, ...}`: JSON, or with patterns as they are (quoted where they hold `,` or `:`)."""
    expected = "patterns and whole numbers; e.g. 'eva.rank_pattern={q_proj: 8, down_proj: 4}'"
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError(expected)
    ranks: dict[str, int] = {}
    for item in _split_items(text[1:-1], expected):
        match = re.fullmatch(r"(.+?)\s*:\s*(\d+)", item)
        if match is None or (name := _parse_name(match[1])) in ranks:
            raise ValueError(expected)
        ranks[name] = int(match[2])
    return ranks


def _parse_names(text: str) -> str | list[str] | None:
    """Parse a name or regex, a list of them, or null."""
    if text in ("null", ""):
        return None
    if not (text.startswith("[") and text.endswith("]")):
        return _parse_name(text)
    expected = "null, a list of names or a regex; e.g. '[q_proj,v_proj]'"
    return [_parse_name(item) for item in _split_items(text[1:-1], expected)]


def _split_items(text: str, expected: str) -> list[str]:
    """Split at commas that are not inside quotes."""
    if not text.strip():
        return []
    items = [item.strip() for item in re.split(r""",(?=(?:[^"']|"[^"]*"|'[^']*')*$)""", text)]
    if not all(items):
        raise ValueError(expected)
    return items


def _parse_name(text: str) -> str:
    """Return a name without the quotes around it; what is in them is taken as it is."""
    quoted = re.fullmatch(r"""(["'])(.*)\1""", text)
    name = quoted[2] if quoted else text
    if not name or (not quoted and re.search(r"""["']""", name)):
        raise ValueError(f"names, quoted on both sides or not at all: {text}")
    return name
