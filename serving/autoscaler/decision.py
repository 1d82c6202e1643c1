"""What the policy answers, and what it keeps from one decision to the next. Data only."""

from dataclasses import dataclass
from enum import StrEnum


class Stance(StrEnum):
    """How a rule's number is meant."""

    VOTE = "vote"
    """So many groups are enough for this rule; the largest vote counts."""
    STAY = "stay"
    """Its data is stale or missing: not fewer than now, and no more on its account."""
    ABSTAIN = "abstain"
    """It has nothing to say."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One rule's word."""

    rule: str
    stance: Stance
    groups: int
    """Meaningless for those who abstain."""
    reason: str


class Action(StrEnum):
    """What is to be done."""

    UP = "up"
    DOWN = "down"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Decision:
    """How many groups there should be, and why."""

    at: float
    """Seconds since the Unix epoch."""
    current: int
    target: int
    reason: str
    votes: tuple[Vote, ...]
    blind: bool
    """No signal could be used: only bounds, schedule, cost and parked requests counted."""

    @property
    def action(self) -> Action:
        """Return which way it goes."""
        if self.target == self.current:
            return Action.HOLD
        return Action.UP if self.target > self.current else Action.DOWN


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What one decision leaves for the next; start with the defaults."""

    wanted: tuple[tuple[float, int], ...] = ()
    """(time, groups) that the votes came to, over the longer of the two windows."""
    idle_since: float | None = None
    ready: int | None = None
    """Groups that took work, when last known."""
    warming_since: float | None = None
    """Since when groups have been missing and none became ready."""
    asleep: bool = False
    """No group was ready when last known."""
    woke_at: float | None = None
    """When the first group became ready after that."""
    capacity: float | None = None
    """Tokens per second of one group, learnt while requests queued."""
    spent_day: int = 0
    """Days since the Unix epoch to which ``spent`` belongs."""
    spent: float = 0.0
    """GPU-hours of that day."""
    spent_at: float | None = None
