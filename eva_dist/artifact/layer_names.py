"""What a layer's name says: its transformer block and its kind; and which layers a person means by a name."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import fsum

from eva_dist.errors import LayerError

_MOST_NAMED = 10
MOST_DIGITS = 18
"""Of a block's number: Python takes none of 5,000 digits, and no model has so many blocks."""


@dataclass(frozen=True)
class Place:
    """`block` is the first number in the name (None without one); `kind` is what blocks have in common."""

    block: int | None
    kind: str


def places(names: Sequence[str]) -> dict[str, Place]:
    """Return the place of each layer.

    `model.layers.3.mlp.experts.7.up_proj` is block 3; its kind is `up_proj` where no other
    kind ends so, else `mlp.experts.*.up_proj`. Models with several stacks of blocks
    (`encoder.block.0…`, `decoder.block.0…`) get the stack put before the kind.
    """
    split = {name: _split_at_block(name) for name in names}
    kinds = _shorten_kinds({kind for _, block, kind in split.values() if block is not None})
    stacks = _distinguish_stacks(sorted({stack for stack, block, _ in split.values() if block is not None}))
    return {
        name: Place(None, kind) if block is None else Place(block, f"{stacks[stack]} {kinds[kind]}".strip())
        for name, (stack, block, kind) in split.items()
    }


def kinds_in_order(by_name: Mapping[str, Place]) -> list[str]:
    """Return each kind once, in the order of the layers."""
    return list(dict.fromkeys(place.kind for place in by_name.values()))


def ranks_by_kind(by_name: Mapping[str, Place], ranks: Mapping[str, int]) -> dict[str, list[int]]:
    """Return kind to the sorted ranks of its layers."""
    grouped: dict[str, list[int]] = defaultdict(list)
    for name, place in by_name.items():
        grouped[place.kind].append(ranks[name])
    return {kind: sorted(values) for kind, values in grouped.items()}


@dataclass(frozen=True)
class BlockGrid:
    """Layers sorted into a grid: a row a kind, a column a block.

    Attributes:
        kinds: the rows, in the order of the layers.
        blocks: the columns, by number; None, for layers outside the blocks, is the last.
        names: the layers of each cell; a block may have several of a kind (experts).
    """

    kinds: tuple[str, ...]
    blocks: tuple[int | None, ...]
    names: Mapping[tuple[str, int | None], Sequence[str]]

    def mean_of(self, values: Mapping[str, float], kind: str, block: int | None) -> float | None:
        """Return the mean of a cell's layers that have a value; None if none has."""
        found = [values[name] for name in self.names.get((kind, block), ()) if name in values]
        return fsum(found) / len(found) if found else None

    def means(self, values: Mapping[str, float]) -> list[list[float | None]]:
        """Return the means of all cells, a list for each kind."""
        return [[self.mean_of(values, kind, block) for block in self.blocks] for kind in self.kinds]


def block_grid(by_name: Mapping[str, Place], outside: bool = False) -> BlockGrid:
    """Sort layers by kind and block; with `outside`, those in no block too."""
    inside = {name: place for name, place in by_name.items() if outside or place.block is not None}
    names: dict[tuple[str, int | None], list[str]] = defaultdict(list)
    for name, place in inside.items():
        names[place.kind, place.block].append(name)
    blocks = sorted({place.block for place in inside.values()}, key=lambda block: (block is None, block))
    return BlockGrid(tuple(kinds_in_order(inside)), tuple(blocks), names)


def choose_layers(wanted: str | Sequence[str], names: Collection[str], prefix: str = "") -> list[str]:
    """Return the names that are meant, as PEFT reads `target_modules`, in the order of `names`.

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
        found = {
            one: {name for name in names if one in (name, prefix + name) or name.endswith(f".{one}")} for one in wanted
        }
        chosen = set().union(*found.values())
        missed = [one for one in found if not found[one]]
    if missed or not chosen:
        what = ", ".join(missed) or "[]"
        endings = dict.fromkeys(name.rpartition(".")[2] for name in names)
        near = [close for one in missed for close in get_close_matches(one, [*endings, *names], 3, 0.6)]
        nearest = ", ".join([*dict.fromkeys(near or endings)][:_MOST_NAMED])
        raise LayerError(f"layers: {what} is none of the artifact's {len(names)} layers; it has {nearest}")
    return [name for name in names if name in chosen]


def _split_at_block(name: str) -> tuple[str, int | None, str]:
    """Return what stands before the block's number, the number, and the kind that stands behind it."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal() and len(part) <= MOST_DIGITS:
            rest = ["*" if p.isdecimal() else p for p in parts[i + 1 :]]
            return ".".join(parts[:i]), int(part), ".".join(rest) or "(block)"
    return "", None, name


def _shorten_kinds(kinds: set[str]) -> dict[str, str]:
    """Keep only the last part of a kind where that is enough to tell it from the others."""
    endings = Counter(kind.rpartition(".")[2] for kind in kinds)
    return {kind: ending if endings[ending := kind.rpartition(".")[2]] == 1 else kind for kind in kinds}


def _distinguish_stacks(stacks: Sequence[str]) -> dict[str, str]:
    """Strip from each stack's path the leading and trailing parts that all of them share."""
    if len(stacks) < 2:
        return dict.fromkeys(stacks, "")
    parts = {stack: stack.split(".") for stack in stacks}
    while all(parts.values()) and len({p[0] for p in parts.values()}) == 1:
        parts = {stack: p[1:] for stack, p in parts.items()}
    while all(parts.values()) and len({p[-1] for p in parts.values()}) == 1:
        parts = {stack: p[:-1] for stack, p in parts.items()}
    return {stack: ".".join(p) for stack, p in parts.items()}
