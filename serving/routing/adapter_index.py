"""Index of LoRA adapters: which ranks hold which adapter, and which are to hold it.

Each adapter has an order of preference over the ranks, by rendezvous hashing (Thaler and
Ravishankar 1998): the order is random for each adapter, the same in every router, and changes
little when a rank joins or leaves. An adapter's requests go to the first ranks in its order, so
that few ranks load it; which of them is a question of load.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

from serving.routing.snapshot import RankId

_ORDERS = 4096
"""Maximum number of adapters whose order is kept."""
_HELD, _FREE, _FULL = 1.0, 0.6, 0.3
"""Values of the first rank in the order: if it holds the adapter, has a free slot, or must remove
another adapter."""
_STEP = 0.2
"""What the last replica is worth less than the first."""


@dataclass(slots=True)
class _Rank:
    slots: int
    held: frozenset[str] = frozenset()
    """Adapters that the rank has reported."""
    running: Counter[str] = field(default_factory=Counter)
    """Number of this router's requests by adapter: the rank holds these, or loads them."""

    def has(self, key: str) -> bool:
        return key in self.held or key in self.running

    @property
    def free(self) -> bool:
        return len(self.held | self.running.keys()) < self.slots

    @property
    def busy(self) -> bool:
        """Whether requests use all slots, so that another adapter must wait."""
        return len(self.running) >= self.slots


class AdapterIndex:
    """Maps ranks to adapters. Not thread-safe: all calls come from one event loop."""

    def __init__(self) -> None:
        """Start without ranks."""
        self._ranks: dict[RankId, _Rank] = {}
        self._orders: dict[str, list[RankId]] = {}

    # -- events -------------------------------------------------------------------------

    def add(self, rank_id: RankId, slots: int, held: Iterable[str] = ()) -> None:
        """Add a rank that runs adapters and accepts requests.

        Args:
            rank_id: The rank.
            slots: Adapters that it can hold.
            held: Adapters that it holds.
        """
        self._ranks[rank_id] = _Rank(slots, frozenset(held))
        self._orders.clear()

    def forget(self, rank_id: RankId) -> None:
        """Drop a rank that left or accepts no more requests."""
        if self._ranks.pop(rank_id, None) is not None:
            self._orders.clear()

    def report(self, rank_id: RankId, held: Iterable[str]) -> None:
        """Take over which adapters a rank holds; ignored for a rank that runs none."""
        rank = self._ranks.get(rank_id)
        if rank is not None:
            rank.held = frozenset(held)

    def began(self, rank_id: RankId, key: str) -> None:
        """Record that a request for an adapter was sent to a rank."""
        rank = self._ranks.get(rank_id)
        if rank is not None:
            rank.running[key] += 1

    def ended(self, rank_id: RankId, key: str) -> None:
        """Record that such a request has left the rank."""
        rank = self._ranks.get(rank_id)
        if rank is None or key not in rank.running:
            return
        rank.running[key] -= 1
        if not rank.running[key]:
            del rank.running[key]

    # -- lookups ------------------------------------------------------------------------

    def holds(self, rank_id: RankId, key: str) -> bool:
        """Return whether a rank holds an adapter, or loads it for another request."""
        rank = self._ranks.get(rank_id)
        return rank is not None and rank.has(key)

    def holders(self, key: str) -> Collection[RankId]:
        """Return the ranks that hold an adapter, or load it."""
        return [rank_id for rank_id, rank in self._ranks.items() if rank.has(key)]

    def values(self, key: str, replicas: int) -> dict[RankId, float]:
        """Return how well ranks suit an adapter, 0 to 1; other ranks are worth nothing.

        Ranks that hold the adapter are worth most. Of the others, only the first ``replicas`` in
        the adapter's order count: more if they have a free slot, nothing if requests use all slots.

        Args:
            key: The adapter's key.
            replicas: Ranks among which the adapter's requests spread, at least 1.
        """
        order = self._order(key)
        values: dict[RankId, float] = {}
        for position, rank_id in enumerate(order):
            rank = self._ranks[rank_id]
            inside = position < replicas
            if rank.has(key):
                worth = _HELD
            elif inside and not rank.busy:
                worth = _FREE if rank.free else _FULL
            else:
                continue
            values[rank_id] = worth - _STEP * min(position / replicas, 1.0)
        return values

    def _order(self, key: str) -> list[RankId]:
        order = self._orders.get(key)
        if order is None:
            if len(self._orders) >= _ORDERS:
                self._orders.clear()
            order = sorted(self._ranks, key=lambda rank_id: _weight(key, rank_id), reverse=True)
            self._orders[key] = order
        return order


def _weight(key: str, rank_id: RankId) -> bytes:
    # Without the epoch: a group that restarts gets the same adapters again.
    return blake2b(f"{key}\0{rank_id.group_id}\0{rank_id.rank}".encode(), digest_size=8).digest()
