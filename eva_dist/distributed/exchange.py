"""Bring the token rows of all workers together, input group by input group.

Every worker calls `bring` with the same groups in the same order, after its forwards:
collectives never run inside a forward, so a layer that one worker's minibatch does not
reach cannot leave the others waiting. Rows arrive ordered by `global_rank`; the stream
gives worker i the i-th block of a step's samples, so that is sample order, and a step
has the same rows on any number of workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class RowExchange(ABC):
    """Brings together each input group's rows."""

    @abstractmethod
    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> dict[int, Tensor]:
        """Return the rows of all workers, `[T, in_features]`, for each group that this worker owns.

        All collectives of a step are over when this returns, so that the owners' SVDs run side
        by side: between two collectives, each would wait for the other's.

        Args:
            rows: group index to this worker's rows, the same keys in the same order on every
                worker, the same number of columns and dtype by group; there may be no row.
            owners: group index to the `global_rank` of its owner.
        """


class LocalExchange(RowExchange):
    """One worker: its rows are all rows."""

    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> dict[int, Tensor]:
        """Return every group's own rows."""
        del owners
        return dict(rows)


class AllGatherExchange(RowExchange):
    """Every worker receives every row (the reference): one all-gather of lengths, then a padded one a group.

    Cost a step: `world_size * max rows * in_features` received a group on every worker, of which
    only the groups that it owns are kept.
    """

    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> dict[int, Tensor]:
        """Return the groups that this worker owns; takes part in the collectives of all of them."""
        if not rows:
            return {}
        mine: dict[int, Tensor] = {}
        lengths_WG = _all_lengths(rows)
        for column, (group, x_TD) in enumerate(rows.items()):
            lengths = lengths_WG[:, column].tolist()
            gathered = _all_gather_rows(x_TD, lengths)
            if owners[group] == dist.get_rank():
                mine[group] = gathered
        return mine


def _all_lengths(rows: Mapping[int, Tensor]) -> Tensor:
    """Return `[world_size, groups]` row counts, on the CPU."""
    device = next(iter(rows.values())).device
    mine_G = torch.tensor([x.shape[0] for x in rows.values()], dtype=torch.int64, device=device)
    return torch.stack(_all_gather(mine_G)).cpu()


def _all_gather_rows(x_TD: Tensor, lengths: list[int]) -> Tensor:
    longest = max(lengths)
    padded_LD = x_TD.new_zeros(longest, x_TD.shape[1])
    padded_LD[: x_TD.shape[0]] = x_TD
    return torch.cat([block[:length] for block, length in zip(_all_gather(padded_LD), lengths, strict=True)])


def _all_gather(mine: Tensor) -> list[Tensor]:
    """Return every worker's tensor, all of one shape, by `global_rank`."""
    received = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(received, mine)
    return received
