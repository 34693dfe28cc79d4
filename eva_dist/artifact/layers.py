"""Which layers a person means: as PEFT reads `target_modules`."""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from eva_dist.errors import LayerError

_MOST_NAMED = 10


def choose_layers(wanted: str | Sequence[str], names: Collection[str], prefix: str = "") -> list[str]:
    """Return the names that are meant, in the order of `names`.

    Args:
        wanted: a regular expression that matches the whole of a name, or a list of names and of their last parts
            (`q_proj`, `self_attn.q_proj`).
        names: all there are.
        prefix: names with it are taken too.

    Raises:
        LayerError: one of the list, or the expression, means none; the message has the nearest names.
    """
    if isinstance(wanted, str):
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise LayerError(f"layers={wanted} must be a regular expression or a list of names: {error}") from error
        chosen = {name for name in names if pattern.fullmatch(name) or pattern.fullmatch(prefix + name)}
        missed = [] if chosen else [wanted]
    else:
        found = {one: {name for name in names if _means(one, name, prefix)} for one in wanted}
        chosen = set().union(*found.values())
        missed = [one for one in found if not found[one]]
    if missed or not chosen:
        what = ", ".join(missed) or "[]"
        raise LayerError(f"layers: {what} is none of the artifact's {len(names)} layers; {_nearest(missed, names)}")
    return [name for name in names if name in chosen]


def _means(wanted: str, name: str, prefix: str) -> bool:
    return wanted in (name, prefix + name) or name.endswith(f".{wanted}")


def _nearest(missed: Sequence[str], names: Collection[str]) -> str:
    endings = dict.fromkeys(name.rpartition(".")[2] for name in names)
    near = [close for one in missed for close in get_close_matches(one, [*endings, *names], 3, 0.6)]
    return f"it has {', '.join([*dict.fromkeys(near or endings)][:_MOST_NAMED])}"
