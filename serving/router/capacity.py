"""Samples the GPUs of the fleet and their busy time for the ledger."""

import asyncio
from collections.abc import Callable

from serving.clock import Clock
from serving.ledger.ledger import Ledger
from serving.ledger.records import GroupCapacity, microseconds
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot

SLOT = 60
"""Length of a slot, seconds. Slots begin at multiples of this length, so that they are the same on
all routers."""


class CapacitySampler:
    """Computes each group's capacity and busy time in a slot from snapshots at its start and end.

    A group counts for the whole slot if it is present in both snapshots. Its ranks count whether or
    not they get requests.
    """

    def __init__(self) -> None:
        self._slot: int | None = None
        self._busy: dict[tuple[str, str], dict[int, float]] = {}
        """Busy seconds of each rank since its engine started, at the start of the slot."""

    def sample(self, boundary: int, snapshot: FleetSnapshot) -> list[GroupCapacity]:
        """Return the records of the slot that ends, and begin the next slot.

        Args:
            boundary: End of a slot, Unix time.
            snapshot: The fleet now.

        Returns:
            One record for each group; empty if the slot's start was not sampled, as after the start
            of the router or a change of the machine's clock.
        """
        complete = self._slot == boundary - SLOT
        records = [
            _record(boundary - SLOT, group, self._busy[_key(group)])
            for group in snapshot.groups
            if complete and _key(group) in self._busy
        ]
        self._slot = boundary
        self._busy = {
            _key(group): {rank.rank: rank.load.busy_seconds_total for rank in group.ranks}
            for group in snapshot.groups
        }
        return records


async def record_capacity(
    snapshot: Callable[[], FleetSnapshot], ledger: Ledger, clock: Clock
) -> None:
    """Record the fleet's capacity at the end of each slot, until cancelled."""
    sampler = CapacitySampler()
    while True:
        now = clock.time()
        boundary = int(now // SLOT + 1) * SLOT
        await asyncio.sleep(boundary - now)
        for record in sampler.sample(boundary, snapshot()):
            ledger.append(record)


def _key(group: GroupSnapshot) -> tuple[str, str]:
    return group.group_id, group.epoch


def _record(slot: int, group: GroupSnapshot, before: dict[int, float]) -> GroupCapacity:
    gpus, busy = 0, 0.0
    for rank in group.ranks:
        gpus += rank.tensor_parallel_size
        now = rank.load.busy_seconds_total
        # A counter that has decreased belongs to an engine that was restarted.
        seconds = min(max(now - before.get(rank.rank, now), 0.0), SLOT)
        busy += seconds * rank.tensor_parallel_size
    return GroupCapacity(slot, group.group_id, SLOT, gpus, microseconds(busy))
