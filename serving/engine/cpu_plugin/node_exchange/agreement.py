"""Joint decision of a group's ranks, made once, on how to exchange tokens.

Either all ranks use shared memory, or all use gloo: a rank that cannot share memory states why, and
every rank receives the reasons of all.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch.distributed as dist

from serving.engine.cpu_plugin.node_exchange.exchange import NodeExchange, segment_bytes
from serving.engine.cpu_plugin.node_exchange.segment import (
    Offer,
    OwnedSegment,
    Segment,
    attach,
)
from serving.engine.cpu_plugin.node_exchange.support import why_not_here
from serving.engine.environment import EXCHANGE, EXCHANGE_SPIN_US

Mode = Literal["auto", "shared_memory", "gloo"]


@dataclass(frozen=True, slots=True)
class Wish:
    """This rank's settings."""

    mode: Mode = "auto"
    spin: float = 0.0
    """Maximum time to spin for another rank before sleeping, seconds."""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Wish":
        """Read the environment set by :mod:`serving.engine.environment`."""
        mode = cast("Mode", environment.get(EXCHANGE, "auto"))
        return cls(mode, int(environment.get(EXCHANGE_SPIN_US, "0")) * 1e-6)


@dataclass(frozen=True, slots=True)
class _Introduction:
    """The first message of a rank to the others."""

    mode: Mode
    problem: str
    """Why this rank cannot use shared memory; empty if it can."""
    node: str
    pid: int
    offer: Offer | None
    """The segment, from the first rank."""


class ExchangeRefused(RuntimeError):
    """``engine.exchange`` is ``shared_memory``, but the ranks of the group cannot use it."""


def agree(group: Any, wish: Wish, timeout: float) -> tuple[NodeExchange | None, str]:
    """Decide how the group exchanges tokens; all ranks of the group must call this.

    Args:
        group: A torch.distributed group on gloo, for the ranks' messages.
        wish: This rank's settings.
        timeout: Maximum time that a rank waits for another in a collective, seconds.

    Returns:
        The exchange, or ``None`` and the reason for using gloo. The same on all ranks.

    Raises:
        ExchangeRefused: A rank's mode is ``shared_memory`` and the group cannot use it.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    problem = why_not_here() if wish.mode != "gloo" else "engine.exchange is gloo"
    owned: OwnedSegment | None = None
    if not problem and rank == 0:
        try:
            owned = OwnedSegment(segment_bytes(world))
        except OSError as error:
            problem = f"no shared memory: {error}"
    offer = None if owned is None else owned.offer
    known = _all(group, _Introduction(wish.mode, problem, _node(), os.getpid(), offer))
    reason = _reason(known)
    exchange = None
    if not reason:
        problem = ""
        try:
            segment: Segment = owned or attach(cast("Offer", known[0].offer))
            exchange = NodeExchange(
                segment, rank, [one.pid for one in known], spin=wish.spin, timeout=timeout
            )
        except OSError as error:
            problem = f"rank {rank} cannot share memory with the others: {error}"
        # After this all ranks have mapped the segment and watch processes that are alive.
        reason = next((one for one in _all(group, problem) if one), "")
    if owned is not None:
        owned.withdraw()
    if not reason:
        return exchange, ""
    if exchange is not None:
        exchange.close()
    if any(one.mode == "shared_memory" for one in known):
        raise ExchangeRefused(
            f"engine.exchange is shared_memory, but {reason}; use auto, or gloo for a group that "
            "spans nodes"
        )
    return None, reason


def _node() -> str:
    """Return a value that is equal for processes on the same node that see the same pids.

    Network namespaces count as nodes: they have separate addresses, and can be cut off.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        spaces = (Path(f"/proc/self/ns/{name}").readlink() for name in ("pid", "net"))
        return " ".join([boot, *map(str, spaces)])
    except OSError as error:
        return f"unknown node: {error}"


def _reason(known: Sequence[_Introduction]) -> str:
    """Return why the group cannot use shared memory; the same on all ranks."""
    problem = next((one.problem for one in known if one.problem), "")
    if problem:
        return problem
    places = len({one.node for one in known})
    if places > 1:
        return f"its ranks are on {places} nodes or in {places} separate containers"
    return ""


def _all(group: Any, mine: Any) -> list[Any]:
    """Return the objects of all ranks, by rank."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, mine, group=group)
    return found
