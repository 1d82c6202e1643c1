"""Gather, reduce-scatter and sum over the ranks of one node.

Each rank has two buffers, used alternately. It writes its rows into one, enters the collective,
waits until all ranks have entered, and reads their rows. A buffer is written again two collectives
later. By then, all ranks have entered the collective in between, so they have finished reading.
"""

from collections.abc import Callable, Hashable, Sequence

import torch

from serving.engine.cpu_plugin.node_exchange.arrivals import STRIDE, Arrivals
from serving.engine.cpu_plugin.node_exchange.buffers import (
    Places,
    places_of_columns,
    places_of_shares,
    round_up,
    row_bytes,
)
from serving.engine.cpu_plugin.node_exchange.segment import Segment

BUFFER_BYTES = 4 * 2**20
"""Size of a buffer, bytes. Larger collectives are split into parts. The kernel only allocates
memory for pages that are written."""

_PAGE = 4096
_KEPT = 256
"""Maximum number of collective shapes whose buffer layouts are cached."""


def segment_bytes(world_size: int, buffer_bytes: int = BUFFER_BYTES) -> int:
    """Return the size of the segment of a group."""
    return _header_bytes(world_size) + 2 * world_size * buffer_bytes


def _header_bytes(world_size: int) -> int:
    """Return the size of the token and the ranks' words, rounded up to a page."""
    return round_up((1 + world_size) * STRIDE, _PAGE)


class NodeExchange:
    """Collectives of one group. All ranks call the same ones in the same order.

    Not thread-safe. The exchange is unusable after an error.
    """

    def __init__(
        self,
        segment: Segment,
        rank: int,
        pids: Sequence[int],
        *,
        spin: float,
        timeout: float,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Prepare a mapped segment for use.

        Args:
            segment: The group's segment, of ``segment_bytes`` bytes.
            rank: This rank.
            pids: Process ids by rank.
            spin: Maximum time to spin for a rank before sleeping, seconds.
            timeout: Maximum time to wait for a rank, seconds.
            buffer_bytes: Size of each buffer, the same on all ranks; a multiple of 64.

        Raises:
            OSError: A process cannot be watched.
        """
        self._rank = rank
        self._world = len(pids)
        self._capacity = buffer_bytes
        self._arrivals = Arrivals(segment, STRIDE, rank, pids, spin=spin, timeout=timeout)
        first = _header_bytes(self._world)
        self._buffers = [
            [
                segment.bytes[first + (2 * owner + turn) * buffer_bytes :][:buffer_bytes]
                for owner in range(self._world)
            ]
            for turn in range(2)
        ]
        self._places: dict[Hashable, Places] = {}

    def close(self) -> None:
        """Stop watching the other processes; the memory is unmapped with the last reference."""
        self._arrivals.close()

    def gather(self, tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
        """Concatenate the rows of all ranks.

        Args:
            tensors: Contiguous tensors ``[sizes[rank], ...]``, of the same dtypes and row shapes
                on all ranks.
            sizes: Number of rows of each rank.

        Returns:
            ``[sum(sizes), ...]`` for each tensor.

        Raises:
            PeerLost: A rank's process has ended, or it did not arrive in time.
            RuntimeError: The ranks disagree about the size.
            ValueError: One row of the tensors exceeds the buffer.
        """
        rows = self._rows_within(sum(row_bytes(tensor) for tensor in tensors), len(tensors))
        if max(sizes) <= rows:
            return self._gather(tensors, sizes)
        # Split into parts, each with some rows of every rank.
        pieces = []
        for start in range(0, max(sizes), rows):
            some = [min(max(size - start, 0), rows) for size in sizes]
            mine = [tensor[start : start + rows] for tensor in tensors]
            pieces.append([each.split(some) for each in self._gather(mine, some)])
        return [
            torch.cat([part[index][rank] for rank in range(self._world) for part in pieces])
            for index in range(len(tensors))
        ]

    def reduce_scatter(self, rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Add the rows of all ranks in float32, in rank order; return this rank's share.

        Args:
            rows: Contiguous ``[sum(sizes), ...]``.
            sizes: Number of rows that each rank receives.

        Returns:
            ``[sizes[rank], ...]`` with the dtype of ``rows``.

        Raises:
            PeerLost: A rank's process has ended, or it did not arrive in time.
            RuntimeError: The ranks disagree about the size.
            ValueError: One row for each rank exceeds the buffer.
        """
        most = self._rows_within(self._world * row_bytes(rows), 1)
        if max(sizes) <= most:
            return self._reduce(rows, sizes)
        shares = rows.split(list(sizes))
        results = []
        for start in range(0, max(sizes), most):
            some = [share[start : start + most] for share in shares]
            results.append(self._reduce(torch.cat(some), [len(share) for share in some]))
        return torch.cat(results)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a small contiguous tensor over all ranks, with its shape and dtype.

        Raises:
            PeerLost: A rank's process has ended, or it did not arrive in time.
            RuntimeError: The ranks disagree about the size.
            ValueError: The tensor exceeds the buffer.
        """
        everyone = self.gather([values.view(1, -1)], [1] * self._world)[0]
        return everyone.sum(0, dtype=values.dtype).view(values.shape)

    def _rows_within(self, size: int, columns: int) -> int:
        """Return how many rows of ``size`` bytes, in aligned columns, fit into a buffer."""
        rows = (self._capacity - STRIDE * columns) // size
        if rows <= 0:
            raise ValueError(f"rows of {size} bytes exceed the buffer of {self._capacity} bytes")
        return rows

    def _gather(self, tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
        key = (*sizes, *((tensor.dtype, tensor.shape[1:]) for tensor in tensors))
        places = self._known(key, lambda: places_of_columns(self._buffers, tensors, sizes))
        turn = places.turns[(self._arrivals.number + 1) % 2]
        for view, tensor in zip(turn[self._rank], tensors, strict=True):
            view.copy_(tensor)
        self._meet(places)
        return [torch.cat(column) for column in zip(*turn, strict=True)]

    def _reduce(self, rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        key = ("reduce", *sizes, rows.dtype, rows.shape[1:])
        places = self._known(key, lambda: places_of_shares(self._buffers, rows, sizes, self._rank))
        whole, *shares = places.turns[(self._arrivals.number + 1) % 2]
        whole[0].copy_(rows)
        self._meet(places)
        # The additions are in the same order as over gloo, so that results are equal.
        total = shares[0][0].float() + shares[1][0].float()
        for share in shares[2:]:
            total += share[0].float()
        return total.to(rows.dtype)

    def _meet(self, places: Places) -> None:
        self._arrivals.enter(places.check)
        self._arrivals.wait(places.check)

    def _known(self, key: Hashable, find: Callable[[], Places]) -> Places:
        """Return the layout of a collective of this shape, cached if it has occurred before."""
        places = self._places.get(key)
        if places is None:
            if len(self._places) >= _KEPT:
                self._places.clear()
            # A view created in inference mode cannot be written outside of it.
            with torch.inference_mode(mode=False):
                places = self._places[key] = find()
        return places
