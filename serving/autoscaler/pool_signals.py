"""Reads the signals of all pools: from Prometheus by model and pool, and from the routers.

The number of queries does not depend on the number of pools.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from serving.autoscaler.pools import FleetPools, Measured
from serving.autoscaler.prometheus import (
    PrometheusApi,
    PrometheusUnavailable,
    age_query,
    duration,
    price_query,
    quantile_query,
    samples_query,
)
from serving.autoscaler.routers import RouterPages, RouterReader
from serving.autoscaler.signals import Reading, Signal
from serving.settings import AutoscalerSettings
from serving.telemetry import fleet_metrics as metrics

_POOL = ("model", "pool")
_MODEL = ("model",)

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


def pool_queries(selector: str, window: float) -> dict[Signal, str]:
    """Return the queries with one series for each model and pool.

    Args:
        selector: Label matchers without braces; may be empty.
        window: Range of rates and quantiles, seconds.
    """
    here = f"{{{selector}}}"
    span = f"{here}[{duration(window)}]"
    ttft, itl = metrics.POOL_TIME_TO_FIRST_TOKEN.name, metrics.POOL_INTER_TOKEN_LATENCY.name
    tokens = metrics.POOL_GENERATED_TOKENS.name
    by = f"by ({', '.join(_POOL)})"
    return {
        Signal.TTFT_P90: quantile_query(ttft, span, *_POOL),
        Signal.ITL_P90: quantile_query(itl, span, *_POOL),
        Signal.TOKEN_RATE: f"sum {by} (rate({tokens}_total{span}))",
        Signal.REQUEST_RATE: f"sum {by} (rate({ttft}_count{span}))",
        Signal.INFLIGHT: f"sum {by} ({metrics.POOL_INFLIGHT.name}{here})",
        Signal.READY_GROUPS: f"max {by} ({metrics.POOL_READY_GROUPS.name}{here})",
    }


def model_queries(selector: str, window: float) -> dict[Signal, str]:
    """Return the queries with one series for each model; arguments as for ``pool_queries``."""
    here = f"{{{selector}}}"
    span = f"{here}[{duration(window)}]"
    return {
        Signal.QUEUE_WAIT_P90: quantile_query(metrics.MODEL_ADMISSION_WAIT.name, span, *_MODEL),
        Signal.QUEUE_REQUESTS: f"sum by (model) ({metrics.MODEL_QUEUED.name}{here})",
        Signal.QUEUE_TOKENS: f"sum by (model) ({metrics.MODEL_QUEUED_TOKENS.name}{here})",
        Signal.BATCH_LINES: f"sum by (model) ({metrics.MODEL_BATCH_LINES.name}{here})",
    }


@dataclass(frozen=True, slots=True)
class PoolsSnapshot:
    """All signals and counts of all pools, read at the same time."""

    fleet: FleetPools | None
    """Counts from the routers. None if no router responded."""
    measured: Measured
    problem: str = ""
    """Why Prometheus is unavailable; empty if it responded."""


class PoolFleetSource(Protocol):
    """Source of the routers' current counts; implemented by ``PoolFleetReader``."""

    async def pools(self) -> FleetPools | None:
        """Return counts by pool and model; None if no router responds."""
        ...


class PoolFleetReader:
    """Reads the counts of all pools from the routers' pages."""

    def __init__(self, pages: RouterPages, readers: Mapping[str, RouterReader]) -> None:
        """Read ``pages``; ``readers`` select the groups of each pool, MODEL/POOL."""
        self._pages = pages
        self._readers = readers

    async def pools(self) -> FleetPools | None:
        """Return counts by pool and model; None if no router responds."""
        pages = await self._pages.read()
        if not pages:
            return None
        ready = {key: max(map(reader.ready, pages)) for key, reader in self._readers.items()}
        waiting, parked = Counter[str](), Counter[str]()
        for page in pages:
            for name, queued, served in _models(page):
                waiting[name] += queued
                parked[name] += 0 if served else queued
        return FleetPools(ready, waiting, parked)


def _models(page: Mapping[str, Any]) -> list[tuple[str, int, bool]]:
    """Return name, queued requests and readiness of each model on a router's page."""
    return [
        (str(model["name"]), int(model["queued_requests"]), bool(model["ready"]))
        for model in page.get("models", ())
    ]


class PoolSignalReader:
    """Reads the signals of all pools concurrently."""

    def __init__(
        self,
        prometheus: PrometheusApi,
        fleet: PoolFleetSource,
        settings: AutoscalerSettings,
        pools: Sequence[tuple[str, str]],
    ) -> None:
        """Read the signals of ``pools``, given as (model name, pool name)."""
        self._prometheus = prometheus
        self._fleet = fleet
        self._pools = pools
        self._by_pool = pool_queries(settings.selector, settings.window)
        self._by_model = model_queries(settings.selector, settings.window)
        self._age = age_query(settings.selector)
        self._samples = samples_query(settings.selector, settings.window)
        self._price = price_query(settings.selector)
        self._expected = max(1.0, settings.window / settings.scrape_interval)

    async def read(self) -> PoolsSnapshot:
        """Return the current signals and counts; an unavailable source raises no exception."""
        fleet, measured = await asyncio.gather(self._fleet.pools(), self._measure())
        if isinstance(measured, PrometheusUnavailable):
            log.warning("no usable metrics", error=str(measured))
            return PoolsSnapshot(fleet, Measured(), str(measured))
        return PoolsSnapshot(fleet, measured)

    async def _measure(self) -> Measured | PrometheusUnavailable:
        api = self._prometheus
        results = await asyncio.gather(
            api.number(self._age),
            api.number(self._samples),
            api.number(self._price),
            *(api.numbers(query, _POOL) for query in self._by_pool.values()),
            *(api.numbers(query, _MODEL) for query in self._by_model.values()),
            return_exceptions=True,
        )
        found: list[Any] = []
        for result in results:
            if isinstance(result, PrometheusUnavailable):
                return result
            if isinstance(result, BaseException):
                raise result
            found.append(result)
        age, samples, price, *series = found
        gap = 1.0 - min(1.0, (samples or 0.0) / self._expected)
        known_age = float("inf") if age is None else age
        first = len(self._by_pool)

        def readings(
            signals: Sequence[Signal], values: Sequence[Mapping[Any, float]], key: tuple[str, ...]
        ) -> dict[Signal, Reading]:
            return {
                signal: Reading(each.get(key), known_age, gap)
                for signal, each in zip(signals, values, strict=True)
            }

        return Measured(
            pools={
                f"{model}/{pool}": readings([*self._by_pool], series[:first], (model, pool))
                | {Signal.GPU_HOUR_PRICE: Reading(price, known_age, gap)}
                for model, pool in self._pools
            },
            models={
                model: readings([*self._by_model], series[first:], (model,))
                for model, _ in self._pools
            },
        )
