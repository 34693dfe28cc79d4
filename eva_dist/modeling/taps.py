"""Tap the inputs of chosen layers during a forward, and tell which layers share one."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SelectRows = Callable[[Any, str], Tensor]
"""`(positional arguments of the layer, layer name) -> [T, in_features]`: the token rows that count."""


class ForwardCut(BaseException):
    """Raised by a tap, and caught by whoever forwards, when nothing that runs after it is needed.

    No `Exception`: a model's own handlers must not take it for an error of theirs.
    """


@contextmanager
def tap_inputs(model: nn.Module, names: Iterable[str], take: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `take(name, positional arguments)` whenever a named module is entered while the context is open.

    Hooks are gone when the context closes, whatever happens.
    """
    modules = {name: model.get_submodule(name) for name in names}  # all names are known before any hook is set
    handles = [
        module.register_forward_pre_hook(lambda _module, arguments, name=name: take(name, arguments))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class InputDigests:
    """Digests of the token rows that each layer received, to tell which layers share an input.

    Only digests are kept, so memory stays that of the forward. `select` picks the rows of
    the minibatch under way. `calls` counts how often each layer was entered, `dtypes` says
    what its rows are made of.
    """

    select: SelectRows

    def __init__(self, dtypes: Mapping[str, torch.dtype]) -> None:
        self.calls = dict.fromkeys(dtypes, 0)
        self.dtypes = dict(dtypes)
        self._digests = {name: hashlib.blake2b() for name in self.calls}
        self._seen = dict.fromkeys(self._digests, 0)

    def take(self, name: str, arguments: Any) -> None:
        """Add what entered a layer."""
        self.calls[name] += 1
        rows = self.select(arguments, name).detach()
        self.dtypes[name] = rows.dtype
        self._seen[name] += rows.shape[0]
        self._digests[name].update(repr((tuple(rows.shape), rows.dtype)).encode())
        self._digests[name].update(rows.contiguous().cpu().view(torch.uint8).numpy().data)

    @property
    def complete(self) -> bool:
        """Whether every layer has seen a token."""
        return all(self._seen.values())

    def names(self) -> list[list[str]]:
        """Return the layers by exactly equal rows; one that saw no token shares its input with nobody."""
        members: dict[Any, list[str]] = defaultdict(list)
        for name, digest in self._digests.items():
            members[digest.digest() if self._seen[name] else name].append(name)
        return list(members.values())


@contextmanager
def collect_groups(model: nn.Module, names: Sequence[str]) -> Iterator[InputDigests]:
    """Yield digests that fill up as forwards run; set their `select` before each forward."""
    digests = InputDigests({name: _weight_dtype(model.get_submodule(name)) for name in names})
    with tap_inputs(model, names, digests.take):
        yield digests


def concatenate(calls: Sequence[Tensor], in_features: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `[T, in_features]`: the rows of all calls in order, or none."""
    if not calls:
        return torch.empty(0, in_features, dtype=dtype, device=device)
    rows = calls[0] if len(calls) == 1 else torch.cat(list(calls))
    return rows.to(device)


def _weight_dtype(module: nn.Module) -> torch.dtype:
    """Return what a layer's inputs are made of as far as its weights tell: for one that no token has reached yet."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def own_rows(rows: Tensor, arguments: Any) -> Tensor:
    """Copy rows that are still a view of the layer's input: later in-place operations would change them."""
    inputs = arguments if isinstance(arguments, (tuple, list)) else (arguments,)
    shared = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, Tensor)}
    rows = rows.detach()
    return rows.clone() if rows.untyped_storage().data_ptr() in shared else rows
