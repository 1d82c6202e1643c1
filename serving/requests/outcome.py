"""How a request ended, for the metrics."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import VLLMClientError

from serving.clock import Clock
from serving.errors import ERROR_TABLE, InvalidRequest, ServingError, status_of
from serving.telemetry import metrics

# There from the start: the first error would otherwise be no increase to Prometheus.
for _reason in {"OK", "CANCELLED", *(status.reason for status in ERROR_TABLE.values())}:
    metrics.REQUESTS.labels(_reason)


@contextmanager
def counted(clock: Clock, arrived_at: float | None = None) -> Iterator[None]:
    """Count a request in the metrics by how the block ends.

    Args:
        clock: the router's.
        arrived_at: when it came, if that was before the block.
    """
    begun = clock.monotonic() if arrived_at is None else arrived_at
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
        metrics.INFLIGHT_REQUESTS.dec()
        metrics.REQUESTS.labels(outcome).inc()
        metrics.REQUEST_SECONDS.observe(clock.monotonic() - begun)
