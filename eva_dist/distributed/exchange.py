"""Bring the token rows of all workers together, input group by input group.

Every worker calls `bring` with the same groups in the same order, after its forwards:
collectives never run inside a forward, so a layer that one worker's minibatch does not
reach cannot leave the others waiting. Rows arrive ordered by `global_rank`; the stream
gives worker i the i-th block of a step's samples, so that is sample order, and a step
has the same rows on any number of workers.

`ToOwnerExchange` is the default: each row travels once, to the owner of its input group,
and all groups of a step go together. `AllGatherExchange` is the reference: every worker
receives every row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


class RowExchange(ABC):
    """Brings together each input group's rows.

    Attributes:
        sent_bytes: bytes of rows, padding included, that this worker sent to other workers, over all
            calls of `bring`; the row counts that go round before them are left out.
        is_local: there is one worker, and nothing to bring together.
    """

    sent_bytes: int = 0
    is_local: bool = False

    @abstractmethod
    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> dict[int, Tensor]:
        """Return the rows of all workers, `[T, in_features]`, for each group that this worker owns.

        All collectives of a step are over when this returns, so that the owners' SVDs run side
        by side: between two collectives, each would wait for the other's.

        Args:
            rows: group index to this worker's rows, all on one device, the same keys in the same order
                on every worker, the same number of columns and dtype by group; there may be no row.
            owners: group index to the `global_rank` of its owner.
        """


class LocalExchange(RowExchange):
    """One worker: its rows are all rows.

    Cost a step: no byte, no collective.
    """

    is_local = True

    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> dict[int, Tensor]:
        """Return every group's own rows."""
        del owners
        return dict(rows)


class ToOwnerExchange(RowExchange):
    """Each row travels once, to its owner (the default): one all-gather of lengths, then one uneven all-to-all.

    Cost a step: a worker sends those of its rows that others own, `(world_size - 1) / world_size` of them
    when owners are even, and receives the others' rows of its own groups; 2 collectives, and one more for
    each further chunk. Memory: the two buffers of one chunk, beside the rows and what is returned.

    Args:
        chunk_bytes: consecutive groups travel together as long as no worker has more than this to send,
            and none more to receive; a group that is larger by itself travels alone.
    """

    def __init__(self, chunk_bytes: int = 256 * 2**20) -> None:
        self._chunk_bytes = chunk_bytes

    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> dict[int, Tensor]:
        """Return the groups that this worker owns; takes part in the collectives of all of them."""
        mine: dict[int, Tensor] = {}
        for chunk in _cut_rows(_split_parcels(rows, owners), self._chunk_bytes):
            sent = _pack_rows(chunk, rows)
            mine |= _unpack_rows(chunk, rows, _all_to_all(chunk, sent))
            self.sent_bytes += sent.numel()
        return mine


class AllGatherExchange(RowExchange):
    """Every worker receives every row (the reference): one all-gather of lengths, then a padded one a group.

    Cost a step: a worker sends its rows, padded to the longest worker's, to each of the others, and
    receives as much from each, of which only the groups that it owns are kept; 1 collective and one
    more for each group.
    """

    def bring(self, rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> dict[int, Tensor]:
        """Return the groups that this worker owns; takes part in the collectives of all of them."""
        mine: dict[int, Tensor] = {}
        for group, lengths in _all_lengths(rows).items():
            gathered = _all_gather_rows(rows[group], lengths)
            self.sent_bytes += max(lengths) * _row_bytes(rows[group]) * (len(lengths) - 1)
            if owners[group] == dist.get_rank():
                mine[group] = gathered
        return mine


@dataclass(frozen=True)
class _Parcel:
    """What one group sends to its owner: bytes by sender's `global_rank`. The owner's own rows stay where they are."""

    group: int
    owner: int
    sizes: tuple[int, ...]

    @property
    def load(self) -> list[int]:
        """Bytes that each worker sends, then bytes that each receives."""
        receives = [0] * len(self.sizes)
        receives[self.owner] = sum(self.sizes)
        return [*self.sizes, *receives]


def _split_parcels(rows: Mapping[int, Tensor], owners: Mapping[int, int]) -> Iterator[_Parcel]:
    """Yield the parcel of each group, the same on every worker."""
    for group, lengths in _all_lengths(rows).items():
        row_bytes = _row_bytes(rows[group])
        sizes = (0 if rank == owners[group] else length * row_bytes for rank, length in enumerate(lengths))
        yield _Parcel(group, owners[group], tuple(sizes))


def _cut_rows(parcels: Iterator[_Parcel], chunk_bytes: int) -> Iterator[list[_Parcel]]:
    """Yield consecutive parcels that travel together; see `ToOwnerExchange` for the bound."""
    chunk: list[_Parcel] = []
    load: list[int] = []
    for parcel in parcels:
        larger = [total + more for total, more in zip(load, parcel.load, strict=True)] if chunk else parcel.load
        if chunk and max(larger) > chunk_bytes:
            yield chunk
            chunk, larger = [], parcel.load
        chunk.append(parcel)
        load = larger
    if chunk:
        yield chunk


def _pack_rows(chunk: Sequence[_Parcel], rows: Mapping[int, Tensor]) -> Tensor:
    """Return this worker's rows that others own, as bytes: owner by owner, then group by group."""
    me = dist.get_rank()
    nothing = torch.empty(0, dtype=torch.uint8, device=rows[chunk[0].group].device)  # there may be nothing to send
    outgoing = sorted((parcel for parcel in chunk if parcel.owner != me), key=lambda parcel: parcel.owner)
    return torch.cat([nothing, *(_as_bytes(rows[parcel.group]) for parcel in outgoing)])


def _all_to_all(chunk: Sequence[_Parcel], sent: Tensor) -> Tensor:
    """Return what the others sent here, as bytes: sender by sender, then group by group."""
    me, world_size = dist.get_rank(), dist.get_world_size()
    outgoing, incoming = [0] * world_size, [0] * world_size
    for parcel in chunk:
        outgoing[parcel.owner] += parcel.sizes[me]
        if parcel.owner == me:
            incoming = [total + size for total, size in zip(incoming, parcel.sizes, strict=True)]
    received = sent.new_empty(sum(incoming))
    dist.all_to_all_single(received, sent, incoming, outgoing)
    return received


def _unpack_rows(chunk: Sequence[_Parcel], rows: Mapping[int, Tensor], received: Tensor) -> dict[int, Tensor]:
    """Return the rows of each group that this worker owns, its own among those that it received."""
    me, world_size = dist.get_rank(), dist.get_world_size()
    incoming = [parcel for parcel in chunk if parcel.owner == me]
    pieces = received.split([parcel.sizes[rank] for rank in range(world_size) for parcel in incoming])
    mine: dict[int, Tensor] = {}
    for i, parcel in enumerate(incoming):
        x_TD = rows[parcel.group]
        blocks = list(pieces[i :: len(incoming)])  # by sender; what this worker sent itself is empty
        blocks[me] = _as_bytes(x_TD)
        # the joined bytes lie at the start of their storage, where any dtype may; a piece may not
        mine[parcel.group] = torch.cat(blocks).view(x_TD.dtype).view(-1, x_TD.shape[1])
    return mine


def _as_bytes(x_TD: Tensor) -> Tensor:
    """Return the rows as a vector of uint8: every backend moves it, and dtypes mix; a view of contiguous rows."""
    return x_TD.contiguous().view(-1).view(torch.uint8)


def _row_bytes(x_TD: Tensor) -> int:
    return x_TD.shape[1] * x_TD.element_size()


def _all_lengths(rows: Mapping[int, Tensor]) -> dict[int, list[int]]:
    """Return how many rows each worker has, by `global_rank`, of each group."""
    if not rows:
        return {}
    device = next(iter(rows.values())).device
    mine_G = torch.tensor([x.shape[0] for x in rows.values()], dtype=torch.int64, device=device)
    lengths_GW = torch.stack(_all_gather(mine_G), dim=1).tolist()
    return dict(zip(rows, lengths_GW, strict=True))


def _all_gather_rows(x_TD: Tensor, lengths: list[int]) -> Tensor:
    padded_LD = x_TD.new_zeros(max(lengths), x_TD.shape[1])
    padded_LD[: x_TD.shape[0]] = x_TD
    return torch.cat([block[:length] for block, length in zip(_all_gather(padded_LD), lengths, strict=True)])


def _all_gather(mine: Tensor) -> list[Tensor]:
    """Return every worker's tensor, all of one shape, by `global_rank`."""
    received = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(received, mine)
    return received
