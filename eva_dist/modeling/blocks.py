"""The repeated blocks of a model, and forwards that end after one of them.

A forward that is left by an exception would leave FSDP2 in the middle of its bookkeeping, so
a sharded model is cut short in another way: while a forward runs, the list of its blocks ends
after the last one that is needed.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from eva_dist.modeling.transformers_internals import declared_block_classes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blocks:
    """The one list of blocks of a model, by its name in it."""

    model: nn.Module
    name: str

    def __len__(self) -> int:
        """Return how many blocks there are."""
        return len(self._block_list)

    def needed(self, layers: Iterable[str]) -> int:
        """Return how many blocks a forward needs for these layers to be entered; all, if one lies outside them."""
        last = 0
        for layer in layers:
            inside = layer.startswith(f"{self.name}.")
            last = max(last, int(layer[len(self.name) + 1 :].partition(".")[0]) + 1 if inside else len(self))
        return last

    @contextmanager
    def first(self, count: int) -> Iterator[None]:
        """While open, the model has its first `count` blocks and no more."""
        blocks = self._block_list
        if count >= len(blocks):
            yield
            return
        parent, _, attribute = self.name.rpartition(".")
        holder = self.model.get_submodule(parent)
        setattr(holder, attribute, blocks[:count])
        try:
            yield
        finally:
            setattr(holder, attribute, blocks)

    @property
    def _block_list(self) -> nn.ModuleList:
        found = self.model.get_submodule(self.name)
        assert isinstance(found, nn.ModuleList)
        return found


def block_lists(model: nn.Module) -> list[str]:
    """Return the names of the lists of blocks; a list inside a block of another list is part of that block.

    Blocks are of the classes that the model declares (`_no_split_modules`), or, for some models declare
    none, of the class from which transformers derives what can be checkpointed as a whole.
    """
    classes = declared_block_classes(model)
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in found):
            continue
        if len(module) and all(_class_name(b) in classes or isinstance(b, GradientCheckpointingLayer) for b in module):
            found.append(name)
    return found


def find_blocks(
    model: nn.Module,
    layers: Iterable[str],
    collect: Callable[[list[str]], Mapping[str, Tensor]],
    all_agree: Callable[[bool], bool] = bool,
) -> Blocks | None:
    """Return the model's blocks if its forwards can end after one of them; None if they have to run whole.

    Tries it: with half of the blocks, the layers in them must receive what they receive from all.

    Args:
        model: the model whose forwards are to be cut.
        layers: names of the layers that will be tapped.
        collect: forwards something and returns what entered the layers that it is given.
        all_agree: whether all workers that hold the model say so: one alone must not cut its forwards.
    """
    lists = block_lists(model)
    if len(lists) != 1:
        return None
    blocks = Blocks(model, lists[0])
    half = len(blocks) // 2
    inside = [layer for layer in layers if blocks.needed([layer]) <= half]
    if not inside:
        return None  # nothing to compare, and little to save
    whole = collect(inside)
    short: Mapping[str, Tensor] = {}
    try:
        with blocks.first(half):
            short = collect(inside)
    except Exception as error:  # whatever a model makes of blocks that are missing
        _log.info("the model does not do with fewer blocks: %s", error)
    same = whole.keys() == short.keys() and all(torch.equal(short[name], x) for name, x in whole.items())
    same = all_agree(same)
    if not same:
        _log.info("forwards run whole, for layers receive something else from the model's first blocks alone")
    return blocks if same else None


def _class_name(block: nn.Module) -> str:
    """Return the name of a block's class as the model declares it; FSDP2 puts `FSDP` before it."""
    return type(block).__name__.removeprefix("FSDP")
