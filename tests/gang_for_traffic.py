"""A gang of processes that exchanges empty rows of given shapes."""

import itertools
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from eva_dist.config import Exchange
from eva_dist.distributed.exchange import AllGatherExchange, ToOwnerExchange
from tests.distributed.gang_of_processes import run

Shapes = dict[int, tuple[int, int]]


def traffic(shapes: Shapes, tokens: list[int], exchange: Exchange, folder: Path) -> list[tuple[int, int]]:
    """Return what each worker sends, and its peak of memory beyond its rows.

    `shapes` maps groups to in_features and owner, `tokens` are each worker's.
    """
    return run(len(tokens), partial(_send, shapes, tokens, exchange), folder)


def _send(shapes: Shapes, tokens: list[int], kind: Exchange, global_rank: int, world_size: int) -> tuple[int, int]:
    exchange = AllGatherExchange() if kind is Exchange.all_gather else ToOwnerExchange()
    rows = {group: torch.zeros(tokens[global_rank], in_features) for group, (in_features, _) in shapes.items()}
    owners = {group: owner for group, (_, owner) in shapes.items()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        mine = exchange.bring(rows, owners)
    events = profiled.profiler.kineto_results.events()
    peak = max(itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]"))
    assert all(owners[group] == global_rank for group in mine)
    return exchange.sent_bytes, peak
