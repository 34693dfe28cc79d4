"""The memory of one worker, phase by phase: what `engine.py`, `feed.py` and `exchange.py` keep, and for how long."""

from dataclasses import dataclass

import torch

from eva_dist.calibration.group_svds import rows_at_once
from eva_dist.config import Exchange
from eva_dist.plan import InputGroup
from eva_dist.preflight.workload import Case

_CHUNK = 256 * 2**20
"""Of the exchange (`ToOwnerExchange`): bytes that travel at one time."""
_BLOCKS_AT_ONCE = 2
"""Whole blocks beside the shards: the one at work, and the one that is gathered ahead of its turn."""


@dataclass(frozen=True)
class MemoryFacts:
    """Of the most loaded worker. Phases follow each other, so `peak` is less than the sum.

    Attributes:
        weights: the model, or its shard.
        gathered: whole blocks beside the shard during a forward, and the embedding.
        activations: peak of one forward.
        rows: token rows held after their forward, until they are exchanged and their SVD is updated.
        exchange: buffers, and the rows that others send.
        trackers: states and components of the input groups that the worker owns.
        checkpoint: states set aside while a checkpoint is written, at most: those before the next updates.
        update: workspace of SVD updates.
        peak: the most at one time, on the device.
        host: in the memory of the CPU (`cluster.offload`).
    """

    weights: int
    gathered: int
    activations: int
    rows: int
    exchange: int
    trackers: int
    checkpoint: int
    update: int
    peak: int
    host: int


def memory_of(case: Case, rank: int) -> MemoryFacts:
    """Return the memory of one worker, phase by phase (`engine.py`, `feed.py`, `exchange.py`)."""
    subject, cluster = case.subject, case.cluster
    sharded = cluster.shard_size > 1
    shard = -(-subject.weight_bytes // cluster.shard_size)
    gathered = subject.embedding_bytes + _BLOCKS_AT_ONCE * subject.block_bytes if sharded else 0
    gathered = min(gathered, subject.weight_bytes)
    owned = case.plan.owned_by(rank)
    trackers = sum(case.update_cost(group).state_bytes for group in owned)
    checkpoint = trackers if cluster.checkpoint_every else 0
    activations = case.traced.peak_bytes if case.traced else _rule_of_thumb(case)
    rows = _rows_held(case)
    update = max((_svd_workspace(case, group) for group in owned), default=0)
    exchange = 0
    if case.workers == 1:
        # a group is updated in the middle of the forward, from a view if the step is one forward
        after = max(_live_rows(case, group) + _svd_workspace(case, group) for group in case.plan.groups)
        busiest = max(gathered + activations, gathered + after) + rows
    else:
        exchange = _exchange_bytes(case, rank)
        later = rows * (case.steps_at_once - 1) // case.steps_at_once
        joined = case.tokens * case.row_bytes(owned)
        busiest = max(gathered + activations + rows, rows + exchange, later + joined + update)
    offloads = cluster.offload and subject.accelerator.device != "cpu"
    weights = 0 if offloads else shard
    return MemoryFacts(
        weights=weights,
        gathered=gathered,
        activations=activations,
        rows=rows,
        exchange=exchange,
        trackers=trackers,
        checkpoint=checkpoint,
        update=update,
        peak=weights + trackers + checkpoint + busiest,
        host=shard if offloads else 0,
    )


def _rows_held(case: Case) -> int:
    """Return the bytes of rows that a worker keeps after the layer has gone on."""
    every = case.row_bytes(case.plan.groups)
    tokens = max(case.shares) * case.subject.length
    window = tokens * case.steps_at_once * every
    at_once = rows_at_once(torch.device(case.subject.accelerator.device))
    if case.workers > 1 or case.forwards * case.steps_at_once > 1:
        return window
    later = window - tokens * every
    largest = max(tokens * case.row_bytes([group]) for group in case.plan.groups)
    return later + (min(at_once + largest, tokens * every) if at_once else 0)


def _svd_workspace(case: Case, group: InputGroup) -> int:
    """Return the workspace of the update that a group is part of."""
    return case.update_cost(group, case.together(group)).workspace_bytes


def _live_rows(case: Case, group: InputGroup) -> int:
    """Return what a forward has allocated when it enters a group's tap."""
    name = group.tap.removeprefix(case.subject.prefix)
    return case.traced.live_bytes[name] if case.traced else _rule_of_thumb(case)


def _exchange_bytes(case: Case, rank: int) -> int:
    """Return buffers, and rows received, at their most; for all_gather without what its backend copies inside."""
    owned = case.tokens * case.row_bytes(case.plan.owned_by(rank))
    largest = max(case.row_bytes([group]) for group in case.plan.groups)
    if case.cluster.exchange is Exchange.all_gather:
        padded = max(case.shares) * case.subject.length * largest
        joined = case.tokens * largest  # of the group at hand, and of the one before it
        return owned + padded * (case.workers + 1) + 2 * joined
    sent = min(case.sent(rank), max(_CHUNK, max(case.shares) * case.subject.length * largest))
    received = min(case.received(rank), max(_CHUNK, case.tokens * largest))
    return owned + sent + received


def _rule_of_thumb(case: Case) -> int:
    widest = max(layer.in_features + layer.out_features for layer in case.subject.layers)
    return 4 * case.per_forward * case.subject.length * widest * case.subject.dtype.itemsize
