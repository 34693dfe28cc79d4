"""What an `adapter_config.json` must be before anything is computed with it: another's file, of any content. Pure."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from eva_dist.artifact.file_names import ADAPTER_CONFIG_FILE
from eva_dist.errors import IntegrityError

_LARGEST_RANK = 1 << 20
_LARGEST_ALPHA = 1e12
_LONGEST_PATTERN = 1000
_REMEDY = "get the adapter again, or save it anew with PEFT"


def check_adapter_config(config: Mapping[str, Any], where: object = None) -> None:
    """Refuse a config whose settings are none; keys that are not there, or null, are PEFT's to fill in.

    Args:
        config: what is in the file.
        where: of the adapter, for the message.

    Raises:
        IntegrityError: a setting that we compute with has another type or range; the message names it and its value.
    """
    of = ADAPTER_CONFIG_FILE if where is None else f"{ADAPTER_CONFIG_FILE} of {where}"
    if not isinstance(config.get("peft_type"), str):
        raise IntegrityError(f"{of}: peft_type={_shown(config.get('peft_type'))} must be a text, e.g. LORA; {_REMEDY}")
    for key, (fits, wanted) in _SETTINGS.items():
        if (value := config.get(key)) is not None and not fits(value):
            raise IntegrityError(f"{of}: {key}={_shown(value)} must be {wanted}; {_REMEDY}")
    for key, (fits, wanted) in _PATTERNS.items():
        if (patterns := config.get(key)) is None:
            continue
        if not isinstance(patterns, dict):
            raise IntegrityError(f"{of}: {key}={_shown(patterns)} must be a mapping; {_REMEDY}")
        for pattern, value in patterns.items():
            if not _is_pattern(pattern):
                raise IntegrityError(f"{of}: {key} has the key {_shown(pattern)}, must be a regular one; {_REMEDY}")
            if not fits(value):
                raise IntegrityError(f"{of}: {key}.{_shown(pattern)}={_shown(value)} must be {wanted}; {_REMEDY}")


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_RANK


def _is_alpha(value: object) -> bool:
    return type(value) in (int, float) and 0 < value <= _LARGEST_ALPHA and math.isfinite(value)  # type: ignore[operator,arg-type]


def _are_targets(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _is_pattern(text: str) -> bool:
    """Tell whether PEFT could look for it: it is a regular expression there."""
    try:
        re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return len(text) <= _LONGEST_PATTERN


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # as deep as a parser goes, or a number of 5,000 digits
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:79]}…"


_RANK = (_is_rank, f"a whole number in 1..{_LARGEST_RANK}")
_ALPHA = (_is_alpha, f"a number above 0, at most {_LARGEST_ALPHA:g}")
_PATTERNS: Mapping[str, tuple[Callable[[object], bool], str]] = {"rank_pattern": _RANK, "alpha_pattern": _ALPHA}
_SETTINGS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "r": _RANK,
    "lora_alpha": _ALPHA,
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "target_modules": (_are_targets, "a text or a list of texts"),
    "base_model_name_or_path": (lambda value: isinstance(value, str), "a text"),
}
