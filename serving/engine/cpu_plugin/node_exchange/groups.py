"""The exchanges of this process's groups, and their use by vLLM."""

import logging
from typing import Any

import torch
import torch.distributed as dist

from serving.engine.cpu_plugin.node_exchange import time_slice
from serving.engine.cpu_plugin.node_exchange.agreement import Wish, agree
from serving.engine.cpu_plugin.node_exchange.exchange import NodeExchange

_log = logging.getLogger("vllm.moe_serving.cpu_plugin")

_exchanges: dict[Any, NodeExchange] = {}
"""Exchanges by torch.distributed group; both groups of a vLLM communicator share one."""


def exchange_of(group: Any) -> NodeExchange | None:
    """Return the exchange of a group, or ``None`` if it uses gloo."""
    return _exchanges.get(group)


def join(communicator: Any) -> None:
    """Let a new group agree on its exchange; all members must call this.

    Args:
        communicator: A ``CpuCommunicator`` with more than one member.

    Raises:
        ExchangeRefused: ``engine.exchange`` is ``shared_memory`` and the group cannot use it.
    """
    group = communicator.cpu_group
    # The same timeout as gloo's.
    timeout = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    exchange, reason = agree(group, Wish.of(), timeout)
    if exchange is None:
        _log.info("group %s exchanges tokens over gloo: %s", communicator.unique_name, reason)
        return
    shortened = time_slice.request(time_slice.SHORTEST)  # for this thread, which runs the model
    _log.info(
        "group %s exchanges tokens through shared memory; short time slice: %s",
        communicator.unique_name,
        shortened,
    )
    _exchanges[communicator.cpu_group] = _exchanges[communicator.device_group] = exchange


def install_sums() -> None:
    """Let the ranks agree on each step's token counts through their exchange.

    vLLM sums them over the data-parallel group before each forward pass.
    """
    from vllm.v1.worker import dp_utils

    dp_utils.dist = _Distributed()


class _Distributed:
    """``torch.distributed``, except that exchanges compute the sums over their groups."""

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def all_reduce(self, tensor: torch.Tensor, *args: Any, group: Any = None, **named: Any) -> Any:
        """Sum in place, like ``torch.distributed.all_reduce``."""
        exchange = exchange_of(group)
        if exchange is None or args or named:
            return dist.all_reduce(tensor, *args, group=group, **named)
        tensor.copy_(exchange.sum(tensor))
        return None
