"""The workers of a shard group forward together: as often, and through the same blocks.

A sharded model gathers the weights of each block from the whole group, so a worker that
forwarded less often than another, or fewer blocks, would leave it waiting. Groups do not wait for
each other.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from eva_dist.distributed.process_group import largest
from eva_dist.modeling.blocks import Blocks, find_blocks
from eva_dist.modeling.forward import TokenForward, entering
from eva_dist.modeling.packing import Layout

_TOKENS = 8


def all_agree(verdict: bool, mesh: DeviceMesh, device: torch.device) -> bool:
    """Return whether every worker of the shard group says so; all its members call this together.

    What one worker alone finds (a kernel that is not deterministic, memory that runs out) must not make it
    forward otherwise than the others.
    """
    return largest(int(not verdict), mesh, device) == 0


def a_few_tokens() -> dict[str, Tensor]:
    """Return a minibatch that every model takes, of no meaning."""
    ids_BT = torch.arange(1, 1 + _TOKENS)[None]
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}


@dataclass(frozen=True)
class ShardGroupLockstep:
    """Keeps one worker in step with its shard group (`feed.Lockstep`)."""

    forward: TokenForward
    blocks: Blocks | None
    mesh: DeviceMesh

    def forwards(self, mine: int) -> int:
        """Return the largest number of minibatches that a worker of the group has in this window; a collective."""
        return largest(mine, self.mesh, self.forward.device)

    def all_agree(self, verdict: bool) -> bool:
        """Return whether every worker of the group says so; a collective."""
        return all_agree(verdict, self.mesh, self.forward.device)

    def idle(self) -> None:
        """Forward a few tokens that nobody wants, for weights have to be gathered with the others."""
        self.forward.run(self.forward.prepare(a_few_tokens()))

    def through(self, taps: Iterable[str]) -> AbstractContextManager[None]:
        """While open, forwards end after the last block with a tap; a group's workers have the same active taps."""
        return nullcontext() if self.blocks is None else self.blocks.first(self.blocks.needed(taps))


def keep_in_step(forward: TokenForward, layers: Iterable[str], mesh: DeviceMesh) -> ShardGroupLockstep:
    """Find out by forwards of a few tokens whether this sharded model can be cut after a block; all workers call this.

    The first of them is whole: FSDP2 learns then which blocks there are.
    """
    model = forward.trunk.module

    def collect(inside: list[str]) -> Mapping[str, Tensor]:
        return entering(model, inside, replace(forward, layout=Layout.padded), a_few_tokens())

    collect([])
    blocks = find_blocks(model, layers, collect, lambda verdict: all_agree(verdict, mesh, forward.device))
    return ShardGroupLockstep(forward, blocks, mesh)
