"""Latency metrics of a request: times of arrival and of tokens, and its outcome."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import VLLMClientError

from serving.clock import Clock
from serving.errors import ERROR_TABLE, InvalidRequest, ServingError, status_of
from serving.telemetry import metrics

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
        arrived_at: Time of arrival, monotonic seconds; default: the start of the block.
        unobserved: No client waits for the request: record its outcome only.
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
            arrived_at: Time of arrival at the router, monotonic seconds; default: now.
            unobserved: No client waits for the tokens: leave them out of the metrics, which are
                the autoscaler's signals.
        """
        self._unobserved = unobserved
        self._clock = clock
        now = clock.monotonic()
        self._arrived_at = now if arrived_at is None else arrived_at
        self._sent_at = self.last_at = now
        self._lost_at: float | None = None
        self.first_at: float | None = None
        """Time of the first token, monotonic seconds; None before it."""

    def sent(self, at: float) -> None:
        """Record the time at which the request was sent to a rank."""
        self._sent_at = at

    def count(self, tokens: int) -> None:
        """Record that ``tokens`` new tokens arrived now."""
        now = self._clock.monotonic()
        if self._unobserved:
            self.first_at = self.first_at or now
            self._lost_at = None
        elif self.first_at is None:
            self.first_at = now
            metrics.TIME_TO_FIRST_TOKEN.observe(now - self._arrived_at)
            metrics.RANK_TIME_TO_FIRST_TOKEN.observe(now - self._sent_at)
        else:
            metrics.INTER_TOKEN_LATENCY.observe((now - self.last_at) / tokens)
        if self._lost_at is not None:
            metrics.RESUME_SECONDS.observe(now - self._lost_at)
            self._lost_at = None
        self.last_at = now
        if not self._unobserved:
            metrics.GENERATED_TOKENS.inc(tokens)

    def lost(self) -> None:
        """Record the loss of the group; the gap is measured until the next new token."""
        if self._lost_at is None:
            self._lost_at = self._clock.monotonic()
