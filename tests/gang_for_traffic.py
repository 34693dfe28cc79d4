"""A gang of processes that exchanges empty rows of given shapes."""

from functools import partial
from pathlib import Path

import torch

from eva_dist.config import Exchange
from eva_dist.distributed.exchange import AllGatherExchange, ToOwnerExchange
from tests.distributed.gang_of_processes import run

Shapes = dict[int, tuple[int, int]]


def sent_bytes(shapes: Shapes, tokens: list[int], exchange: Exchange, folder: Path) -> list[int]:
    """Return what each worker sends: `shapes` maps groups to in_features and owner, `tokens` are each worker's."""
    return run(len(tokens), partial(_send, shapes, tokens, exchange), folder)


def _send(shapes: Shapes, tokens: list[int], kind: Exchange, global_rank: int, world_size: int) -> int:
    exchange = AllGatherExchange() if kind is Exchange.all_gather else ToOwnerExchange()
    rows = {group: torch.zeros(tokens[global_rank], in_features) for group, (in_features, _) in shapes.items()}
    exchange.bring(rows, {group: owner for group, (_, owner) in shapes.items()})
    return exchange.sent_bytes
