"""Reads the signals from Prometheus: PromQL queries, HTTP API client, and snapshots.

Metric names come from ``serving.telemetry.metrics`` and ``fleet_metrics``. Each router counts only
the requests it handles, so counts are summed. All routers see the same groups, so group counts use
the maximum.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import structlog

from serving.autoscaler.signals import FleetCounts, Reading, Signal
from serving.errors import ServingError
from serving.settings import AutoscalerSettings
from serving.telemetry import fleet_metrics as metrics

_QUANTILE = 0.9

# The client library's metric objects omit the suffixes that the text format adds.
_TTFT = "moe_time_to_first_token_seconds"
_ITL = "moe_inter_token_latency_seconds"
_WAIT = "moe_admission_wait_seconds"
_GPU_HOUR_PRICE = "moe_gpu_hour_price"
PULSE = "moe_inflight_requests"
"""Series that exists whenever a router is scraped; age and gaps are derived from its samples."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class PrometheusUnavailable(ServingError):
    """Prometheus did not respond, or its response is an error or cannot be parsed."""


# -- PromQL -----------------------------------------------------------------------------------


def signal_queries(selector: str, window: float) -> dict[Signal, str]:
    """Return the query of each signal.

    Args:
        selector: Label matchers without braces; may be empty.
        window: Range of rates and quantiles, seconds.
    """
    span = f"{{{selector}}}[{duration(window)}]"
    here = f"{{{selector}}}"
    ready = f'{selector},state="ready"' if selector else 'state="ready"'
    return {
        Signal.TTFT_P90: quantile_query(_TTFT, span),
        Signal.ITL_P90: quantile_query(_ITL, span),
        Signal.QUEUE_WAIT_P90: quantile_query(_WAIT, span),
        # A router whose queue was never used does not export the series; count its queue as empty.
        Signal.QUEUE_REQUESTS: f"sum(moe_admission_queue_requests{here}) or 0 * sum({PULSE}{here})",
        Signal.QUEUE_TOKENS: f"sum(moe_admission_queue_tokens{here})",
        Signal.TOKEN_RATE: f"sum(rate(moe_generated_tokens_total{span}))",
        Signal.REQUEST_RATE: f"sum(rate({_TTFT}_count{span}))",
        Signal.INFLIGHT: f"sum({PULSE}{here})",
        Signal.READY_GROUPS: f"max({metrics.GROUPS.name}{{{ready}}})",
        Signal.BATCH_LINES: f"sum({metrics.MODEL_BATCH_LINES.name}{here})",
        Signal.GPU_HOUR_PRICE: price_query(selector),
    }


def price_query(selector: str) -> str:
    """Return the query for the price of a GPU-hour."""
    return f"max({_GPU_HOUR_PRICE}{{{selector}}})"


def age_query(selector: str) -> str:
    """Return the query for the seconds since the newest scrape of any router."""
    return f"min(time() - timestamp({PULSE}{{{selector}}}))"


def samples_query(selector: str, window: float) -> str:
    """Return the query for the largest number of scrapes of one router in the window."""
    return f"max(count_over_time({PULSE}{{{selector}}}[{duration(window)}]))"


def quantile_query(histogram: str, span: str, *labels: str) -> str:
    """Return the query for the P90 of a histogram.

    Args:
        histogram: Name of the metric.
        span: Label matchers in braces and the range in brackets.
        labels: Labels by which the result is grouped.
    """
    by = ", ".join(("le", *labels))
    return f"histogram_quantile({_QUANTILE}, sum by ({by}) (rate({histogram}_bucket{span})))"


def duration(seconds: float) -> str:
    """Return a duration in PromQL syntax."""
    return f"{round(seconds * 1000)}ms"


# -- the HTTP API -----------------------------------------------------------------------------


class PrometheusApi:
    """Client of one Prometheus server, HTTP API v1."""

    def __init__(self, client: httpx.AsyncClient, url: str, timeout: float) -> None:
        """Query the server at ``url``; each query times out after ``timeout`` seconds."""
        self._client = client
        self._url = f"{url.rstrip('/')}/api/v1/query"
        self._timeout = timeout

    async def number(self, query: str) -> float | None:
        """Run an instant query that returns at most one series.

        Returns:
            The value; None if there is no series or the value is not finite.

        Raises:
            PrometheusUnavailable: The query failed or timed out, or it returned more than one
                series.
        """
        return _number(await self._query(query))

    async def numbers(self, query: str, labels: Sequence[str]) -> dict[tuple[str, ...], float]:
        """Run an instant query that returns one series for each combination of ``labels``.

        Returns:
            The finite values, by the values of ``labels``.

        Raises:
            PrometheusUnavailable: The query failed or timed out, or a series lacks one of the
                labels.
        """
        content = await self._query(query)
        try:
            found = {
                tuple(series["metric"][label] for label in labels): float(series["value"][1])
                for series in content["data"]["result"]
            }
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PrometheusUnavailable("Prometheus returned an unreadable response") from error
        return {key: value for key, value in found.items() if math.isfinite(value)}

    async def _query(self, query: str) -> dict[str, Any]:
        try:
            # POST keeps the query out of proxy logs and caches.
            response = await self._client.post(
                self._url,
                data={"query": query, "timeout": f"{self._timeout:g}s"},
                timeout=self._timeout,
            )
            content = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise PrometheusUnavailable(
                f"Prometheus at {self._url} does not respond: {type(error).__name__} {error}"
            ) from error
        if not isinstance(content, dict) or content.get("status") != "success":
            message = content.get("error") if isinstance(content, dict) else content
            raise PrometheusUnavailable(f"Prometheus returned {response.status_code}: {message}")
        return content


def _number(content: dict[str, Any]) -> float | None:
    try:
        series = content["data"]["result"]
        if not series:
            return None
        if len(series) > 1:
            raise PrometheusUnavailable(f"Prometheus returned {len(series)} series instead of one")
        value = float(series[0]["value"][1])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PrometheusUnavailable("Prometheus returned an unreadable response") from error
    # A quantile over no observations is NaN.
    return value if math.isfinite(value) else None


# -- a snapshot of all signals ----------------------------------------------------------------


class FleetSource(Protocol):
    """Source of the routers' current counts; implemented by ``routers.RouterReader``."""

    async def counts(self) -> FleetCounts | None:
        """Return ready groups and parked requests; None if no router responds."""
        ...


@dataclass(frozen=True, slots=True)
class SignalSnapshot:
    """All signals and counts, read at the same time."""

    fleet: FleetCounts | None
    signals: Mapping[Signal, Reading]
    """Readings by signal; empty if Prometheus is unavailable."""
    problem: str = ""
    """Why Prometheus is unavailable; empty if it responded."""


class SignalReader:
    """Reads all signals concurrently."""

    def __init__(
        self, prometheus: PrometheusApi, fleet: FleetSource, settings: AutoscalerSettings
    ) -> None:
        self._prometheus = prometheus
        self._fleet = fleet
        self._queries = signal_queries(settings.selector, settings.window)
        self._age = age_query(settings.selector)
        self._samples = samples_query(settings.selector, settings.window)
        self._expected = max(1.0, settings.window / settings.scrape_interval)

    async def read(self) -> SignalSnapshot:
        """Return the current signals and counts; an unavailable source raises no exception."""
        fleet, signals = await asyncio.gather(self._fleet.counts(), self._read_prometheus())
        if isinstance(signals, PrometheusUnavailable):
            log.warning("no usable metrics", error=str(signals))
            return SignalSnapshot(fleet, {}, str(signals))
        return SignalSnapshot(fleet, signals)

    async def _read_prometheus(self) -> Mapping[Signal, Reading] | PrometheusUnavailable:
        queries = (self._age, self._samples, *self._queries.values())
        results = await asyncio.gather(
            *(self._prometheus.number(query) for query in queries), return_exceptions=True
        )
        numbers: list[float | None] = []
        for result in results:
            if isinstance(result, PrometheusUnavailable):
                return result
            if isinstance(result, BaseException):
                raise result
            numbers.append(result)
        age, samples, *values = numbers
        gap = 1.0 - min(1.0, (samples or 0.0) / self._expected)
        known_age = float("inf") if age is None else age
        return {
            signal: Reading(value, known_age, gap)
            for signal, value in zip(self._queries, values, strict=True)
        }
