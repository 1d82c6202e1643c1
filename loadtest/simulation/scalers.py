"""Ways of scaling: our policy, a fixed number of groups, and simple queue rules."""

import math
from dataclasses import dataclass, field
from typing import Protocol

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.policy import decide
from serving.autoscaler.signals import Observation, Signal
from serving.settings import AutoscalerSettings

_EPOCH = 1_700_006_400.0
"""A midnight (UTC), so that the day of the cost cap starts with the simulation."""


class Scaler(Protocol):
    """Decides on the number of groups of the whole fleet."""

    @property
    def name(self) -> str:
        """Name in the table."""
        ...

    @property
    def interval(self) -> float:
        """Interval of decisions, seconds."""
        ...

    def target(self, observation: Observation, now: float) -> int:
        """Return the number of groups for the observation at ``now`` (seconds)."""
        ...


@dataclass(slots=True)
class OurPolicy:
    """The product's ``autoscaler.policy.decide``."""

    settings: AutoscalerSettings
    gpus: float
    name: str = "our policy"
    state: PolicyState = field(default_factory=PolicyState)
    reasons: list[tuple[float, int, str]] = field(default_factory=list)
    """(seconds, groups, reason) of every change."""

    @property
    def interval(self) -> float:
        """Interval from the settings, seconds."""
        return self.settings.interval

    def target(self, observation: Observation, now: float) -> int:
        """Return the decision of the policy."""
        decision, self.state = decide(
            observation, self.state, _EPOCH + now, self.settings, self.gpus
        )
        if decision.target != decision.current:
            self.reasons.append((now, decision.target, decision.reason))
        return decision.target


@dataclass(frozen=True, slots=True)
class FixedSize:
    """A constant number of groups."""

    groups: int
    interval: float = 3600.0

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"fixed {self.groups}"

    def target(self, observation: Observation, now: float) -> int:
        """Return the constant."""
        del observation, now
        return self.groups


@dataclass(slots=True)
class QueueRule:
    """The algorithm of Kubernetes' HorizontalPodAutoscaler on requests per group.

    ``wanted = ceil(current * (mean / per_group))`` unless the ratio is within 10 % of 1. Scales up
    to at most twice as many or 4 more within 15 s, and down only to the highest number wanted in
    the last 300 s. These are the defaults in
    kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale.
    """

    per_group: float
    """Target number of requests per group."""
    signal: Signal
    """QUEUE_REQUESTS: waiting requests; INFLIGHT: waiting and running ones."""
    least: int
    most: int
    name: str
    interval: float = 15.0
    down_window: float = 300.0
    tolerance: float = 0.1
    wanted: list[tuple[float, int]] = field(default_factory=list)

    def target(self, observation: Observation, now: float) -> int:
        """Return the decision of the rule."""
        current = observation.target
        value = observation.reading(self.signal).value
        if value is None:
            return current
        ratio = value / self.per_group / max(current, 1)
        wanted = current if abs(ratio - 1) <= self.tolerance else math.ceil(current * ratio)
        wanted = min(max(wanted, self.least), self.most, max(2 * current, current + 4))
        self.wanted = [(at, n) for at, n in self.wanted if at > now - self.down_window]
        self.wanted.append((now, wanted))
        return max(wanted, min(current, max(n for _, n in self.wanted)))
