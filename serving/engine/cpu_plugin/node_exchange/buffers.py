"""The layout of a collective's tensors in the ranks' buffers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Places:
    """Views of the buffers for collectives of one shape."""

    turns: list[list[list[torch.Tensor]]]
    """Lists of lists of views, for each of the two turns."""
    check: int
    """Number of bytes modulo 2**32; equal on ranks that agree on the shape."""


def places_of_columns(
    buffers: Sequence[Sequence[torch.Tensor]],
    tensors: Sequence[torch.Tensor],
    sizes: Sequence[int],
) -> Places:
    """Lay out tensors one after another in each rank's buffer.

    Args:
        buffers: Bytes by turn and rank.
        tensors: ``[any, ...]``; only their dtypes and row shapes are used.
        sizes: Number of rows of each rank.

    Returns:
        Views by turn, rank and tensor, ``[sizes[rank], ...]``.
    """
    widths = [row_bytes(tensor) for tensor in tensors]

    def columns(buffer: torch.Tensor, rows: int) -> list[torch.Tensor]:
        starts = itertools.accumulate(
            (round_up(rows * width, _ALIGNMENT) for width in widths), initial=0
        )
        return [
            _view(buffer, start, tensor, rows)
            for start, tensor in zip(starts, tensors, strict=False)
        ]

    turns = [
        [columns(buffer, rows) for buffer, rows in zip(each, sizes, strict=True)]
        for each in buffers
    ]
    return Places(turns, sum(widths) * sum(sizes) % 2**32)


def places_of_shares(
    buffers: Sequence[Sequence[torch.Tensor]],
    rows: torch.Tensor,
    sizes: Sequence[int],
    rank: int,
) -> Places:
    """Lay out the rows for all ranks in each rank's buffer.

    Args:
        buffers: Bytes by turn and rank.
        rows: ``[sum(sizes), ...]``.
        sizes: Number of rows that each rank receives.
        rank: This rank.

    Returns:
        By turn: this rank's whole buffer ``[[rows]]``, then this rank's share in the buffer of
        each rank.
    """
    start = sum(sizes[:rank]) * row_bytes(rows)
    turns = [
        [
            [_view(each[rank], 0, rows, sum(sizes))],
            *([_view(buffer, start, rows, sizes[rank])] for buffer in each),
        ]
        for each in buffers
    ]
    return Places(turns, row_bytes(rows) * sum(sizes) % 2**32)


def row_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of one row of ``[any, ...]``."""
    return int(tensor.element_size() * math.prod(tensor.shape[1:]))


def round_up(size: int, unit: int) -> int:
    """Return the next multiple of ``unit``."""
    return -(-size // unit) * unit


def _view(buffer: torch.Tensor, start: int, like: torch.Tensor, rows: int) -> torch.Tensor:
    piece = buffer[start : start + rows * row_bytes(like)]
    return piece.view(like.dtype).view(rows, *like.shape[1:])
