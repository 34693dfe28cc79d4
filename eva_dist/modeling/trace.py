"""A forward of a model without weights, on the meta device: what it would cost, and which layers share an input.

Nothing is computed and nothing is allocated, whatever the model's size; the same Python runs as in
a real forward, so architectures need no table of their own. Only attention is replaced: by a
function that knows the samples in a row and gives back an empty tensor of the right shape.
"""

import logging
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface

from eva_dist.errors import LayerError
from eva_dist.modeling.forward import Placed, Trunk, select_tokens
from eva_dist.modeling.packing import can_segment
from eva_dist.modeling.taps import ForwardCut, tap_inputs
from eva_dist.modeling.transformers_internals import (
    TorchDispatchMode,
    grouped_product_counts,
    is_matrix_product,
    tensor_version,
    writes_in_place,
)

_log = logging.getLogger(__name__)

_META = "eva_dist_meta"


@dataclass(frozen=True)
class Traced:
    """What a forward of some samples up to the last of the traced layers would take.

    Attributes:
        groups: names of layers that receive the same input.
        live_bytes: by each group's first name, what the forward has allocated when that layer is entered.
        operations: multiplications and additions of the matrix products; attention counts every pair of
            tokens of a sample, as `torch.utils.flop_counter` does, though causal kernels skip half of them.
        attention_operations: those of attention, among `operations`.
        product_bytes, other_bytes: read and written by matrix products, weights included, and by all else.
        peak_bytes: most that the forward has allocated at one time.
        number_bytes: bytes of one number in each layer's input.
        layout: how the samples lay: `segments` in one row, or `padded`.
    """

    groups: tuple[tuple[str, ...], ...]
    live_bytes: Mapping[str, int]
    operations: int
    attention_operations: int
    product_bytes: int
    other_bytes: int
    peak_bytes: int
    number_bytes: Mapping[str, int]
    layout: str


def trace_forward(trunk: nn.Module, layers: Sequence[str], samples: int, length: int) -> Traced | None:
    """Trace a forward of `samples` samples of `length` tokens through a model on the meta device.

    Layers share an input if they are given the same memory: layers that are given equal copies of
    it count apart here, and together in a real run.

    Args:
        trunk: in evaluation mode and in its dtype.
        layers: names in `trunk`.
        samples: how many.
        length: of each, in tokens.

    Returns:
        None if the model cannot run without real numbers (experts chosen by value, mostly).

    Raises:
        LayerError: a layer's input has no row a token.
    """
    segmented = can_segment(trunk)
    shape = (1, samples * length) if segmented else (samples, length)
    ids_BT = torch.zeros(shape, dtype=torch.int64, device="meta")
    inputs = {"input_ids": ids_BT}
    if segmented:
        inputs |= {"position_ids": torch.zeros_like(ids_BT), "attention_mask": torch.ones_like(ids_BT)}
    attention = _Attention(samples)
    try:
        if segmented:
            trunk.set_attn_implementation(_META)  # type: ignore[operator]
        return _trace_taps(Trunk(trunk), layers, inputs, attention, "segments" if segmented else "padded")
    except LayerError:
        raise
    except Exception as error:  # whatever a model makes of tensors without numbers
        _log.info("%s cannot be traced without weights: %s", type(trunk).__name__, error)
        return None
    finally:
        if segmented:
            trunk.set_attn_implementation("sdpa")  # type: ignore[operator]


def _trace_taps(
    trunk: Trunk, layers: Sequence[str], inputs: Mapping[str, Tensor], attention: "_Attention", layout: str
) -> Traced | None:
    whole = Placed({}, (inputs["input_ids"].shape[0], inputs["input_ids"].shape[1]), None, ())
    allocations = _Allocations([*trunk.module.parameters(), *trunk.module.buffers(), *inputs.values()])
    entered: dict[str, tuple[Any, ...]] = {}
    live: dict[str, int] = {}
    number_bytes: dict[str, int] = {}

    def take(name: str, arguments: Any) -> None:
        x = arguments[0]
        select_tokens(x, whole, name)  # refuses what a run refuses
        entered.setdefault(name, (allocations.serial(x), x.storage_offset(), x.numel(), x.shape[-1], tensor_version(x)))
        live.setdefault(name, allocations.live)
        number_bytes.setdefault(name, x.element_size())
        if len(entered) == len(layers):
            raise ForwardCut

    counter = FlopCounterMode(display=False, custom_mapping=grouped_product_counts())
    with torch.no_grad(), attention.open(), tap_inputs(trunk.module, layers, take), counter, allocations:
        with suppress(ForwardCut):
            trunk.run(inputs)
    if len(entered) < len(layers):
        return None
    members: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name in layers:
        members[entered[name]].append(name)
    groups = tuple(tuple(names) for names in members.values())
    return Traced(
        groups=groups,
        live_bytes={names[0]: live[names[0]] for names in groups},
        operations=counter.get_total_flops() + attention.operations,
        attention_operations=attention.operations,
        product_bytes=allocations.product_bytes,
        other_bytes=allocations.other_bytes,
        peak_bytes=allocations.peak,
        number_bytes=number_bytes,
        layout=layout,
    )


class _Allocations(TorchDispatchMode):
    """While open, follows the memory of tensors that operations make, as an allocator would, not of those given.

    Counts what operations read and write, too; views are free.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.product_bytes = 0
        self.other_bytes = 0
        self._serials: MutableMapping[Any, int] = WeakIdKeyDictionary()
        self._serials.update({tensor.untyped_storage(): at for at, tensor in enumerate(given)})
        self._made = len(given)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        written, read = _find_tensors((made,)), _find_tensors(args)
        for tensor in written:
            self.serial(tensor)
        shared = {self.serial(x) for x in read} & {self.serial(x) for x in written}
        if not shared or writes_in_place(function):
            moved = sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in [*read, *written])
            if is_matrix_product(function):
                self.product_bytes += moved
            else:
                self.other_bytes += moved
        return made

    def serial(self, tensor: Tensor) -> int:
        """Return the number of a tensor's memory; memory that is new counts from now until it is freed."""
        storage = tensor.untyped_storage()
        if storage not in self._serials:
            self._made += 1
            self._serials[storage] = self._made
            self._add_bytes(storage.nbytes())
            weakref.finalize(storage, self._add_bytes, -storage.nbytes()).atexit = False
        return self._serials[storage]

    def _add_bytes(self, more: int) -> None:
        self.live += more
        self.peak = max(self.peak, self.live)


def _find_tensors(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors among values, and in lists of them."""
    flat = [x for value in values for x in (value if isinstance(value, (tuple, list)) else (value,))]
    return [x for x in flat if isinstance(x, Tensor)]


@dataclass
class _Attention:
    """Counts the operations of attention while open; `samples` of equal length lie in one row."""

    samples: int
    operations: int = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        token = _attention.set(self)
        try:
            yield
        finally:
            _attention.reset(token)


_attention: ContextVar[_Attention] = ContextVar("eva_dist_traced_attention")


def _attend_on_meta(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Stand in for attention (the contract of transformers' attention functions): give an empty output, and count."""
    counted = _attention.get()
    batch, heads, tokens, features = query.shape
    pairs = batch * heads * tokens * key.shape[2] // counted.samples
    counted.operations += 2 * pairs * (features + value.shape[3])
    length = tokens // counted.samples  # the samples' outputs `[B, T, heads, features]`, put together
    return torch.cat([query.new_empty(batch, length, heads, value.shape[3]) for _ in range(counted.samples)], 1), None


AttentionInterface.register(_META, _attend_on_meta)
AttentionMaskInterface.register(_META, lambda **_: None)
