"""Who says how many groups there should be: our policy, a fixed number, and plain queue rules."""

import math
from dataclasses import dataclass, field
from typing import Protocol

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.policy import decide
from serving.autoscaler.snapshot import Observation, Signal
from serving.settings import AutoscalerSettings

_EPOCH = 1_700_006_400.0
"""A midnight (UTC), so that a day's cost cap begins with the simulation."""


class Scaler(Protocol):
    """Says how many groups the whole fleet should have."""

    @property
    def name(self) -> str:
        """For the table."""
        ...

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        ...

    def target(self, seen: Observation, now: float) -> int:
        """Return how many groups are wanted, from what was seen at ``now`` (seconds)."""
        ...


@dataclass(slots=True)
class OurPolicy:
    """The product's own ``autoscaler.policy.decide``."""

    settings: AutoscalerSettings
    gpus: float
    name: str = "our policy"
    state: PolicyState = field(default_factory=PolicyState)
    reasons: list[tuple[float, int, str]] = field(default_factory=list)
    """(seconds, groups, why) of every change."""

    @property
    def interval(self) -> float:
        """As in the settings."""
        return self.settings.interval

    def target(self, seen: Observation, now: float) -> int:
        """Decide."""
        decision, self.state = decide(seen, self.state, _EPOCH + now, self.settings, self.gpus)
        if decision.target != decision.current:
            self.reasons.append((now, decision.target, decision.reason))
        return decision.target


@dataclass(frozen=True, slots=True)
class FixedSize:
    """So many groups, always."""

    groups: int
    interval: float = 3600.0

    @property
    def name(self) -> str:
        """For the table."""
        return f"fixed {self.groups}"

    def target(self, seen: Observation, now: float) -> int:
        """Return the same number."""
        del seen, now
        return self.groups


@dataclass(slots=True)
class QueueRule:
    """Kubernetes' horizontal pod autoscaler on requests a group, in groups in place of pods.

    ``wanted = ceil(current * (mean / per_group))`` unless the ratio is within 10 % of 1; at most
    twice as many or 4 more in 15 s; fewer only if nothing more was wanted for 300 s. These are the
    defaults of kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale.
    """

    per_group: float
    """Requests that one group should have."""
    signal: Signal
    """QUEUE_REQUESTS: those that wait; INFLIGHT: those and the ones that run."""
    least: int
    most: int
    name: str
    interval: float = 15.0
    down_window: float = 300.0
    tolerance: float = 0.1
    wanted: list[tuple[float, int]] = field(default_factory=list)

    def target(self, seen: Observation, now: float) -> int:
        """Return the rule's number."""
        current = seen.target
        value = seen.reading(self.signal).value
        if value is None:
            return current
        ratio = value / self.per_group / max(current, 1)
        wanted = current if abs(ratio - 1) <= self.tolerance else math.ceil(current * ratio)
        wanted = min(max(wanted, self.least), self.most, max(2 * current, current + 4))
        self.wanted = [(at, n) for at, n in self.wanted if at > now - self.down_window]
        self.wanted.append((now, wanted))
        return max(wanted, min(current, max(n for _, n in self.wanted)))
