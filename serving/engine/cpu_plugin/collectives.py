"""Ragged collectives for vLLM's CPU communicator.

vLLM's all-to-all on CPU ("allgather_reducescatter") gathers the tokens of all ranks before the
experts and reduce-scatters the results after them. Ranks have different numbers of tokens, so both
operations are ragged; ``CpuCommunicator`` of vLLM 0.32 implements neither.

Groups whose ranks are all on one node exchange rows through shared memory
(:mod:`serving.engine.cpu_plugin.node_exchange`), the others through gloo.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

from serving.engine.cpu_plugin.node_exchange import groups
from serving.engine.cpu_plugin.patch import Patch


def all_gatherv(
    self: Any,
    input_: torch.Tensor | list[torch.Tensor],
    dim: int = 0,
    sizes: list[int] | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """Concatenate the rows of all ranks.

    Several tensors are packed into one byte tensor, because on loopback the fixed cost of a
    collective exceeds the cost of its bytes.

    Args:
        self: The ``CpuCommunicator``.
        input_: One tensor ``[rows, ...]`` or a list of tensors with the same number of rows.
        dim: Must be 0.
        sizes: Number of rows of each rank; by default this rank's number for all ranks.

    Returns:
        ``[sum(sizes), ...]`` for each tensor of ``input_``; a list if ``input_`` is one.

    Raises:
        NotImplementedError: ``dim`` is not 0.
        ValueError: A tensor's number of rows differs from ``sizes``.
    """
    if dim != 0:
        raise NotImplementedError(f"all_gatherv on CPU: dimension {dim} is not supported, only 0")
    tensors = [input_] if isinstance(input_, torch.Tensor) else list(input_)
    if self.world_size == 1:
        return input_
    rows = tensors[0].shape[0]
    sizes = sizes or [rows] * self.world_size
    if any(tensor.shape[0] != sizes[self.rank_in_group] for tensor in tensors):
        raise ValueError(
            f"all_gatherv: rank {self.rank_in_group} has {[t.shape[0] for t in tensors]} "
            f"rows, but sizes is {sizes}",
        )
    exchange = groups.exchange_of(self.device_group)
    if exchange is not None:
        gathered = exchange.gather([tensor.contiguous() for tensor in tensors], sizes)
        return gathered[0] if isinstance(input_, torch.Tensor) else gathered
    packed = [t.contiguous().view(rows, -1).view(torch.uint8) for t in tensors]
    widths = [piece.shape[1] for piece in packed]
    most = max(sizes)
    mine = torch.empty(most, sum(widths), dtype=torch.uint8)
    torch.cat(packed, dim=1, out=mine[:rows])
    everyone = torch.empty(self.world_size * most, mine.shape[1], dtype=torch.uint8)
    dist.all_gather_into_tensor(everyone, mine, group=self.device_group)
    if any(size != most for size in sizes):
        everyone = torch.cat(
            [everyone[rank * most : rank * most + size] for rank, size in enumerate(sizes)],
        )
    gathered = [
        piece.contiguous().view(tensor.dtype).view(-1, *tensor.shape[1:])
        for piece, tensor in zip(everyone.split(widths, dim=1), tensors, strict=True)
    ]
    return gathered[0] if isinstance(input_, torch.Tensor) else gathered


def reduce_scatterv(
    self: Any,
    input_: torch.Tensor,
    dim: int = -1,
    sizes: list[int] | None = None,
) -> torch.Tensor:
    """Sum ``input_`` over all ranks and return this rank's rows of the sum.

    Each rank receives all contributions to its rows and adds them in float32 in rank order. The
    result is therefore independent of the rest of the batch. In a ring reduction it is not,
    because each chunk is summed in a different order.

    Args:
        self: The ``CpuCommunicator``.
        input_: ``[sum(sizes), ...]``.
        dim: Must be 0 or ``-input_.dim()``.
        sizes: Number of rows of each rank; by default equal shares.

    Returns:
        ``[sizes[rank], ...]`` with the dtype of ``input_``.

    Raises:
        NotImplementedError: ``dim`` is not 0.
        ValueError: The number of rows of ``input_`` is not the sum of ``sizes``.
    """
    if dim not in (0, -input_.dim()):
        raise NotImplementedError(
            f"reduce_scatterv on CPU: dimension {dim} is not supported, only 0"
        )
    if self.world_size == 1:
        return input_
    if sizes is None:
        sizes = [input_.shape[0] // self.world_size] * self.world_size
    if sum(sizes) != input_.shape[0]:
        raise ValueError(f"reduce_scatterv: {input_.shape[0]} rows, but sizes is {sizes}")
    exchange = groups.exchange_of(self.device_group)
    if exchange is not None:
        return exchange.reduce_scatter(input_.contiguous(), sizes)
    mine = sizes[self.rank_in_group]
    parts = input_.new_empty(self.world_size * mine, *input_.shape[1:])
    dist.all_to_all_single(
        parts,
        input_.contiguous(),
        [mine] * self.world_size,
        sizes,
        group=self.device_group,
    )
    first, *others = parts.split(mine)
    total = first.float()
    for other in others:
        total = total + other.float()
    return total.to(input_.dtype)


def is_right() -> bool:
    """Return whether vLLM implements both operations.

    The probe runs in one process; :func:`self_check` verifies the results across ranks.
    """
    alone = SimpleNamespace(
        world_size=1,
        rank_in_group=0,
        device_group=None,
        cpu_group=None,
        ranks=[0],
        dist_module=dist,
    )
    rows = torch.ones(2, 3)
    for call in (CpuCommunicator.all_gatherv, CpuCommunicator.reduce_scatterv):
        try:
            call(alone, rows, dim=0, sizes=[2])
        except NotImplementedError:
            return False
        except Exception:  # noqa: BLE001, S112  implemented, but requires a real group
            continue
    return True


def apply() -> None:
    """Add both operations to ``CpuCommunicator``."""
    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv


PATCH = Patch("ragged collectives", is_right, apply)


def install() -> None:
    """Let new multi-rank groups agree on an exchange and check it before its first use."""
    original = CpuCommunicator.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # Groups that carry tokens. All members create them at the same time.
        if self.world_size > 1 and self.unique_name.startswith(("dp", "ep")):
            if inspect.unwrap(CpuCommunicator.all_gatherv) is all_gatherv:
                groups.join(self)
            self_check(self)

    CpuCommunicator.__init__ = init
    groups.install_sums()


def self_check(communicator: Any) -> None:
    """Gather and reduce-scatter small ragged tensors and compare with the expected results.

    This is a collective operation: all members of the group must call it together.

    Raises:
        RuntimeError: A result is wrong.
    """
    world, rank = communicator.world_size, communicator.rank_in_group
    sizes = [1 + (index * 2) % 3 for index in range(world)]

    def rows(index: int) -> torch.Tensor:
        count = sizes[index] * 4
        return torch.arange(count, dtype=torch.float32).view(-1, 4) + 100.0 * index

    gathered, ids = communicator.all_gatherv(
        [rows(rank), torch.full((sizes[rank], 2), rank, dtype=torch.int32)],
        dim=0,
        sizes=sizes,
    )
    everything = torch.cat([rows(index) for index in range(world)])
    owners = torch.repeat_interleave(torch.arange(world), torch.tensor(sizes))
    if not torch.equal(gathered, everything) or not torch.equal(ids[:, 1].long(), owners):
        raise RuntimeError(f"all_gatherv over {communicator.unique_name} returned wrong rows")
    reduced = communicator.reduce_scatterv(everything * (rank + 1), dim=0, sizes=sizes)
    if not torch.equal(reduced, rows(rank) * (world * (world + 1) // 2)):
        raise RuntimeError(f"reduce_scatterv over {communicator.unique_name} returned wrong sums")
