"""Bring the token rows of all workers together, one input group after the other.

Every worker calls `bring` with the same groups in the same order, after its forwards:
collectives never run inside a forward, so a layer that one worker's minibatch does not
reach cannot leave the others waiting. Rows arrive ordered by `global_rank`; the stream
gives worker i the i-th block of a step's samples, so that is sample order, and a step
has the same rows on any number of workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class RowExchange(ABC):
    """Brings together each input group's rows; `bytes_sent` counts what this worker sent."""

    bytes_sent: int = 0

    @abstractmethod
    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield `(group, rows of all workers [T, in_features])` for each group that this worker owns.

        Args:
            rows: group index to this worker's rows, the same keys in the same order on every
                worker, the same number of columns and dtype by group; there may be no row.
            owners: group index to the `global_rank` of its owner.
        """


class LocalExchange(RowExchange):
    """One worker: its rows are all rows."""

    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield every group's own rows."""
        del owners
        yield from rows.items()


class AllGatherExchange(RowExchange):
    """Every worker receives every row (the reference): one all-gather of lengths, then a padded one a group.

    Cost a step: `world_size * max rows * in_features` received a group on every worker. Only one
    group at a time is held in full.
    """

    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield the groups that this worker owns; takes part in the collectives of all of them."""
        if not rows:
            return
        lengths_WG = _all_lengths(rows)
        for column, (group, x_TD) in enumerate(rows.items()):
            lengths = lengths_WG[:, column].tolist()
            gathered = _all_gather_rows(x_TD, lengths)
            self.bytes_sent += max(lengths) * x_TD.shape[1] * x_TD.element_size()
            if owners[group] == dist.get_rank():
                yield group, gathered


def _all_lengths(rows: Mapping[int, Tensor]) -> Tensor:
    """Return `[world_size, groups]` row counts, on the CPU."""
    device = next(iter(rows.values())).device
    mine_G = torch.tensor([x.shape[0] for x in rows.values()], dtype=torch.int64, device=device)
    lengths_WG = mine_G.new_empty(dist.get_world_size(), len(rows))
    dist.all_gather_into_tensor(lengths_WG.view(-1), mine_G)
    return lengths_WG.cpu()


def _all_gather_rows(x_TD: Tensor, lengths: list[int]) -> Tensor:
    longest = max(lengths)
    padded_LD = x_TD.new_zeros(longest, x_TD.shape[1])
    padded_LD[: x_TD.shape[0]] = x_TD
    received_WLD = x_TD.new_empty(len(lengths), longest, x_TD.shape[1])
    dist.all_gather_into_tensor(received_WLD.view(-1, x_TD.shape[1]), padded_LD)
    return torch.cat([block[:length] for block, length in zip(received_WLD, lengths, strict=True)])
