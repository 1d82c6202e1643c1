"""Latency metrics of a request: times of arrival and of tokens, and its outcome."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import VLLMClientError

from serving.clock import Clock
from serving.errors import ERROR_TABLE, InvalidRequest, ServingError, status_of
from serving.telemetry import metrics
from serving.telemetry.model_counters import PoolCounters

# Exported as 0 from the start; otherwise Prometheus would not see the first error as an increase.
for _reason in {"OK", "CANCELLED", *(status.reason for status in ERROR_TABLE.values())}:
    metrics.REQUESTS.labels(_reason)


@contextmanager
def request_metrics(
    clock: Clock, arrived_at: float | None = None, *, unobserved: bool = False
) -> Iterator[None]:
    """Count a request as in flight during the block, and record its outcome at the end.

    Args:
        clock: The router's clock.
        arrived_at: Time of arrival, monotonic seconds; the start of the block by default.
        unobserved: Whether no client waits for the request; then only its outcome is recorded.
    """
    begun = clock.monotonic() if arrived_at is None else arrived_at
    if not unobserved:
        metrics.INFLIGHT_REQUESTS.inc()
    outcome = "OK"
    try:
        yield
    except ServingError as error:
        outcome = status_of(error).reason
        raise
    except VLLMClientError:
        outcome = status_of(InvalidRequest()).reason
        raise
    except (asyncio.CancelledError, GeneratorExit):
        outcome = "CANCELLED"
        raise
    except Exception:
        outcome = "INTERNAL"
        raise
    finally:
        metrics.REQUESTS.labels(outcome).inc()
        if not unobserved:
            metrics.INFLIGHT_REQUESTS.dec()
            metrics.REQUEST_SECONDS.observe(clock.monotonic() - begun)


class TokenTimings:
    """Times of a request's tokens, across all ranks it ran on; feeds the latency metrics."""

    __slots__ = (
        "_arrived_at",
        "_clock",
        "_lost_at",
        "_pool",
        "_sent_at",
        "_unobserved",
        "first_at",
        "last_at",
    )

    def __init__(
        self, clock: Clock, arrived_at: float | None = None, *, unobserved: bool = False
    ) -> None:
        """Start timing.

        Args:
            clock: The router's clock.
            arrived_at: Time of arrival at the router, monotonic seconds; the current time by
                default.
            unobserved: Whether no client waits for the tokens; they are then left out of the
                metrics, which are the autoscaler's signals.
        """
        self._unobserved = unobserved
        self._clock = clock
        now = clock.monotonic()
        self._arrived_at = now if arrived_at is None else arrived_at
        self._sent_at = self.last_at = now
        self._lost_at: float | None = None
        self.first_at: float | None = None
        """Time of the first token, monotonic seconds. None until then."""
        self._pool: PoolCounters | None = None
        """Counters of the pool that the request runs on. None if it is on no rank or not counted by
        pool."""

    def sent(self, at: float, pool: PoolCounters | None = None) -> None:
        """Record the time at which the request was sent to a rank, and the rank's pool."""
        self._sent_at = at
        self._enter(None if self._unobserved else pool)

    def left(self) -> None:
        """Record that the request is no longer on a rank. Safe to call twice."""
        self._enter(None)

    def _enter(self, pool: PoolCounters | None) -> None:
        if self._pool is not None:
            self._pool.inflight_requests -= 1
        if pool is not None:
            pool.inflight_requests += 1
        self._pool = pool

    def count(self, tokens: int) -> None:
        """Record that ``tokens`` new tokens arrived now."""
        now = self._clock.monotonic()
        pool = self._pool
        if self._unobserved:
            self.first_at = self.first_at or now
            self._lost_at = None
        elif self.first_at is None:
            self.first_at = now
            metrics.TIME_TO_FIRST_TOKEN.observe(now - self._arrived_at)
            metrics.RANK_TIME_TO_FIRST_TOKEN.observe(now - self._sent_at)
            if pool is not None:
                pool.first_token.observe(now - self._arrived_at)
        else:
            each = (now - self.last_at) / tokens
            metrics.INTER_TOKEN_LATENCY.observe(each)
            if pool is not None:
                pool.inter_token.observe(each)
        if self._lost_at is not None:
            metrics.RESUME_SECONDS.observe(now - self._lost_at)
            self._lost_at = None
        self.last_at = now
        if not self._unobserved:
            metrics.GENERATED_TOKENS.inc(tokens)
            if pool is not None:
                pool.generated_tokens += tokens

    def lost(self) -> None:
        """Record the loss of the group; the gap is measured until the next new token."""
        if self._lost_at is None:
            self._lost_at = self._clock.monotonic()
