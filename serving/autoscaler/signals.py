"""The input of the policy: signals from Prometheus and counts from the routers. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Signal(StrEnum):
    """A value read from Prometheus; ``prometheus.signal_queries`` has the queries."""

    TTFT_P90 = "ttft_p90_seconds"
    """P90 time to first token."""
    ITL_P90 = "itl_p90_seconds"
    """P90 inter-token latency."""
    QUEUE_WAIT_P90 = "queue_wait_p90_seconds"
    """P90 wait in the admission queue."""
    QUEUE_REQUESTS = "queue_requests"
    """Number of requests in the admission queues."""
    QUEUE_TOKENS = "queue_tokens"
    """Estimated number of tokens of the queued requests."""
    TOKEN_RATE = "token_rate"  # noqa: S105  tokens that a model generates, per second
    """Rate of generated tokens, tokens/s."""
    REQUEST_RATE = "request_rate"
    """Rate of first tokens, tokens/s."""
    INFLIGHT = "inflight_requests"
    """Number of requests in flight, including queued ones."""
    READY_GROUPS = "ready_groups"
    """Number of groups that accept requests."""
    BATCH_LINES = "batch_lines"
    """Number of lines of batches that run or wait for capacity on a rank."""
    GPU_HOUR_PRICE = "gpu_hour_price"
    """Price of one GPU-hour, in the tariff's currency; 0 if it is not set."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of one signal and the quality of its data."""

    value: float | None
    """The value. None if there is no such series, or for a quantile over no observations."""
    age: float = 0.0
    """Age of the newest sample, seconds."""
    gap: float = 0.0
    """Fraction of the scrapes in the window that are missing, 0 to 1."""

    def fresh(self, max_age: float, max_gap: float) -> bool:
        """Return whether age and gap are within the limits; ``value`` may still be None."""
        return self.age <= max_age and self.gap <= max_gap


MISSING = Reading(None, age=float("inf"), gap=1.0)


@dataclass(frozen=True, slots=True)
class FleetCounts:
    """Current counts from the routers' ``/fleet`` pages, independent of scrapes."""

    ready: int
    """Number of groups that accept requests: the maximum over the routers."""
    parked: int
    """Number of requests that wait because no group is ready: the sum over the routers."""


@dataclass(frozen=True, slots=True)
class Observation:
    """All inputs of one decision."""

    target: int
    """Number of groups currently requested from Ray Serve, running or not."""
    fleet: FleetCounts | None
    """Counts from the routers. None if no router responded."""
    signals: Mapping[Signal, Reading] = field(default_factory=dict)
    pool: str = ""
    """The pool, as MODEL/POOL; empty for the groups in the short form of the settings."""

    def reading(self, signal: Signal) -> Reading:
        """Return the reading of ``signal``, or ``MISSING``."""
        return self.signals.get(signal, MISSING)
