"""Samples laid end to end in one row, so that no padding is forwarded, and the check that this changes nothing.

Three layouts, best first:

- `segments`: one row with `position_ids`; each sample attends to itself in a call of its own,
  without any mask, by an attention function registered with transformers (it splits the row
  and hands each part to transformers' own `sdpa`). Work is the sum of squared lengths.
- `packed`: one row with `position_ids`; transformers finds the samples in them and builds the
  block-diagonal mask (or gives FlashAttention the lengths). Work is the square of the sum.
- `padded`: `[B, T]` with an attention mask. Any model.

Which one a model can take is found by forwarding one small minibatch in each
(`agrees`), not by a list of architectures.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from eva_dist.modeling.transformers_internals import uses_sdpa

_log = logging.getLogger(__name__)

_SEGMENTS = "eva_dist_segments"
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 2e-2
"""Largest relative difference of a layer's inputs between layouts: far above rounding, far below a leak."""

_TINY = torch.finfo(torch.float64).tiny

_lengths: ContextVar[tuple[int, ...] | None] = ContextVar("eva_dist_segment_lengths", default=None)


class Layout(Enum):
    """How the samples of a minibatch lie in the tensors that are forwarded."""

    segments = "segments"
    packed = "packed"
    padded = "padded"


@contextmanager
def segments(lengths: Sequence[int]) -> Iterator[None]:
    """While open, rows that models with our attention function forward consist of samples of these lengths."""
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


@contextmanager
def attention_by_segment(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """While open, a transformers model attends segment by segment; it must use `sdpa` (see `can_segment`)."""
    if not wanted:
        yield
        return
    assert isinstance(model, PreTrainedModel)
    model.set_attn_implementation(_SEGMENTS)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def can_segment(model: nn.Module) -> bool:
    """Tell whether the model, all parts of it, goes through transformers' attention interface with `sdpa`."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    return isinstance(model, PreTrainedModel) and all(uses_sdpa(part) for part in parts)


def agrees(layout: Layout, collect: Callable[[Layout], Mapping[str, Tensor]]) -> bool:
    """Tell whether every layer receives in this layout what it receives in the padded one.

    Args:
        layout: the one to try.
        collect: forwards one minibatch in a layout and returns token rows by layer.
    """
    try:
        worst = _largest_difference(collect(Layout.padded), collect(layout))
    except Exception as error:  # whatever a model makes of a layout that it does not know
        _log.info("layout %s does not suit this model: %s", layout.value, error)
        return False
    if worst > 1.0:
        _log.info("layout %s changes the inputs of some layer by %.0f times what is tolerated", layout.value, worst)
    return worst <= 1.0


def _largest_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Return the largest mean relative difference of any layer's rows, in tolerances; endless for NaN."""
    worst = 0.0
    for name, rows_TD in expected.items():
        if name not in found or found[name].shape != rows_TD.shape:
            return float("inf")
        # row by row: a token with massive activations must not hide what happens to the others
        exact_TD = rows_TD.double()
        off_T = (found[name].double() - exact_TD).norm(dim=1) / exact_TD.norm(dim=1).clamp_min(_TINY)
        difference = float(off_T.mean())
        worst = max(worst, difference / _TOLERANCE.get(rows_TD.dtype, _HALF_TOLERANCE), key=lambda d: (d != d, d))
    return worst if worst == worst else float("inf")


class _SegmentMasks(tuple[Tensor | None, ...]):
    """One mask a segment; None stands for plain causal or plain bidirectional attention."""


def _mask_by_segment(
    *, q_length: int, kv_length: int, mask_function: Callable[..., Any], **options: Any
) -> Tensor | _SegmentMasks | None:
    """Return what transformers' mask function means within each segment (the contract of `sdpa_mask`)."""
    lengths = _lengths.get()
    if lengths is None:
        mask: Tensor | None = sdpa_mask(q_length=q_length, kv_length=kv_length, mask_function=mask_function, **options)
        return mask
    if mask_function in (causal_mask_function, bidirectional_mask_function):
        return None
    # Sliding windows, chunks and the like count positions within a sample, as they would were it alone in its row.
    alone = {**options, "batch_size": 1, "q_offset": 0, "kv_offset": 0, "attention_mask": None}
    alone["allow_is_causal_skip"] = False
    return _SegmentMasks(sdpa_mask(q_length=n, kv_length=n, mask_function=mask_function, **alone) for n in lengths)


def _attention_by_segment(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Attend within each segment (the contract of transformers' attention functions; heads are dimension 1)."""
    lengths = _lengths.get()
    if lengths is None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return attended, None
    if query.shape[0] != 1 or query.shape[2] != sum(lengths) or key.shape[2] != sum(lengths):
        raise ValueError(
            f"queries {tuple(query.shape)} and keys {tuple(key.shape)} are not one row of {sum(lengths)} tokens"
        )
    masks = attention_mask if isinstance(attention_mask, _SegmentMasks) else [None] * len(lengths)
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), masks, strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, mask, **options)[0] for q, k, v, mask in parts], 1), None


AttentionInterface.register(_SEGMENTS, _attention_by_segment)
AttentionMaskInterface.register(_SEGMENTS, _mask_by_segment)
