"""The newest decisions of the autoscaler, which sends them to every router.

They are in memory since the router's start, and only shown: routers do not act on them.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from serving.console.hub import Parts
from serving.errors import InvalidRequest

MAX_POOLS = 32
"""Maximum number of pools; beyond it, the pool with the oldest decision is dropped."""
SAMPLES = 360
"""Number of decisions of a pool whose group counts are kept."""
CHANGES = 50
"""Number of decisions of a pool that changed its group count and are kept with their reasons."""
_Text = Annotated[str, Meta(max_length=1000)]
_Name = Annotated[str, Meta(max_length=300)]
_encode = msgspec.json.Encoder().encode


class ReportedVote(msgspec.Struct, frozen=True):
    """The vote of one rule."""

    rule: _Name
    kind: _Name
    groups: int
    reason: _Text


class ReportedDecision(msgspec.Struct, frozen=True):
    """A decision as the autoscaler sends it: ``serving.autoscaler.reports``."""

    at: float
    """Unix time, seconds."""
    current: int
    target: int
    reason: _Text
    pool: _Name = ""
    """Model and pool; empty if there is only one."""
    ready: int | None = None
    """Number of ready groups. None if no router responded to the autoscaler."""
    blind: bool = False
    dry_run: bool = False
    votes: Annotated[list[ReportedVote], Meta(max_length=32)] = []
    signals: Annotated[dict[_Name, float | None], Meta(max_length=64)] = {}


_decoder = msgspec.json.Decoder(ReportedDecision)


@dataclass(slots=True)
class _Pool:
    newest: ReportedDecision
    sizes: deque[tuple[int, int, int | None]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    changes: deque[ReportedDecision] = field(default_factory=lambda: deque(maxlen=CHANGES))


class DecisionLog:
    """The decisions, and the part ``autoscaling``."""

    def __init__(self) -> None:
        """Start without decisions."""
        self._pools: OrderedDict[str, _Pool] = OrderedDict()

    def add(self, body: bytes) -> None:
        """Store a decision.

        Raises:
            InvalidRequest: ``body`` is not the JSON of a ``ReportedDecision``.
        """
        try:
            decision = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"not a decision of the autoscaler: {error}") from error
        pool = self._pools.setdefault(decision.pool, _Pool(decision))
        self._pools.move_to_end(decision.pool)
        pool.newest = decision
        pool.sizes.append((round(decision.at), decision.target, decision.ready))
        if decision.target != decision.current:
            pool.changes.append(decision)
        if len(self._pools) > MAX_POOLS:
            self._pools.popitem(last=False)

    def __call__(self) -> Parts:
        """Return the decisions of all pools as JSON."""
        pools = [
            {
                "pool": name,
                "newest": pool.newest,
                # Rows of Unix time, wanted groups, ready groups.
                "sizes": list(pool.sizes),
                "changes": [
                    {"at": each.at, "current": each.current, "target": each.target}
                    | {"reason": each.reason, "dry_run": each.dry_run}
                    for each in reversed(pool.changes)
                ],
            }
            for name, pool in sorted(self._pools.items())
        ]
        return {"autoscaling": _encode({"pools": pools})}
