"""What the policy sees: one look at the signals and at the fleet. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Signal(StrEnum):
    """What is asked of Prometheus; ``queries`` says how."""

    TTFT_P90 = "ttft_p90_seconds"
    """Time to first token."""
    ITL_P90 = "itl_p90_seconds"
    """Inter-token latency."""
    QUEUE_WAIT_P90 = "queue_wait_p90_seconds"
    QUEUE_REQUESTS = "queue_requests"
    QUEUE_TOKENS = "queue_tokens"
    TOKEN_RATE = "token_rate"  # noqa: S105  tokens that a model generates, per second
    REQUEST_RATE = "request_rate"
    """First tokens per second."""
    INFLIGHT = "inflight_requests"
    READY_GROUPS = "ready_groups"


@dataclass(frozen=True, slots=True)
class Reading:
    """One signal: its value, how old its newest sample is, and how many scrapes are missing."""

    value: float | None
    """None: there is no such series, or nothing to take a quantile of."""
    age: float = 0.0
    """Seconds."""
    gap: float = 0.0
    """Share of the scrapes in the window that are missing, 0 to 1."""

    def fresh(self, max_age: float, max_gap: float) -> bool:
        """Return whether it may be decided upon; a value is another question."""
        return self.age <= max_age and self.gap <= max_gap


MISSING = Reading(None, age=float("inf"), gap=1.0)


@dataclass(frozen=True, slots=True)
class FleetCounts:
    """What the routers say at this moment, without a scrape."""

    ready: int
    """Groups that take work, as the router that sees most of them counts."""
    parked: int
    """Requests that wait while no group takes work, of all routers together."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a decision is made of."""

    target: int
    """Groups that are asked for at present, running or not."""
    fleet: FleetCounts | None
    """None: no router answered."""
    signals: Mapping[Signal, Reading] = field(default_factory=dict)

    def reading(self, signal: Signal) -> Reading:
        """Return the signal, or one that is missing."""
        return self.signals.get(signal, MISSING)
