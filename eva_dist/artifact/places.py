"""Where a layer sits: its transformer block and its kind, read from its name alone."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


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
    split = {name: _split(name) for name in names}
    kinds = _shorten({kind for _, block, kind in split.values() if block is not None})
    stacks = _distinguish(sorted({stack for stack, block, _ in split.values() if block is not None}))
    return {
        name: Place(None, kind) if block is None else Place(block, f"{stacks[stack]} {kinds[kind]}".strip())
        for name, (stack, block, kind) in split.items()
    }


def kinds_in_order(by_name: dict[str, Place]) -> list[str]:
    """Return each kind once, in the order of the layers."""
    return list(dict.fromkeys(place.kind for place in by_name.values()))


def _split(name: str) -> tuple[str, int | None, str]:
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            rest = ["*" if p.isdecimal() else p for p in parts[i + 1 :]]
            return ".".join(parts[:i]), int(part), ".".join(rest) or "(block)"
    return "", None, name


def _shorten(kinds: set[str]) -> dict[str, str]:
    """Keep only the last part of a kind where that is enough to tell it from the others."""
    endings = Counter(kind.rpartition(".")[2] for kind in kinds)
    return {kind: ending if endings[ending := kind.rpartition(".")[2]] == 1 else kind for kind in kinds}


def _distinguish(stacks: Sequence[str]) -> dict[str, str]:
    """Strip from each stack's path the leading and trailing parts that all of them share."""
    if len(stacks) < 2:
        return dict.fromkeys(stacks, "")
    parts = {stack: stack.split(".") for stack in stacks}
    while all(parts.values()) and len({p[0] for p in parts.values()}) == 1:
        parts = {stack: p[1:] for stack, p in parts.items()}
    while all(parts.values()) and len({p[-1] for p in parts.values()}) == 1:
        parts = {stack: p[:-1] for stack, p in parts.items()}
    return {stack: ".".join(p) for stack, p in parts.items()}


def ranks_by_kind(by_name: dict[str, Place], ranks: dict[str, int]) -> dict[str, list[int]]:
    """Return kind to the sorted ranks of its layers."""
    grouped: dict[str, list[int]] = defaultdict(list)
    for name, place in by_name.items():
        grouped[place.kind].append(ranks[name])
    return {kind: sorted(values) for kind, values in grouped.items()}
