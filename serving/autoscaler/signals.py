"""One look at everything: Prometheus, with age and gaps, and the routers. Never raises."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from serving.autoscaler.prometheus import PrometheusApi, PrometheusDown
from serving.autoscaler.queries import age_query, samples_query, signal_queries
from serving.autoscaler.snapshot import FleetCounts, Reading, Signal
from serving.settings import AutoscalerSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class FleetSource(Protocol):
    """Says what the routers see now; ``routers.Routers`` is the real one."""

    async def counts(self) -> FleetCounts | None:
        """Return ready groups and parked requests, or None if no router answers."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """What one look gave."""

    fleet: FleetCounts | None
    signals: Mapping[Signal, Reading]
    """Empty when Prometheus does not answer."""
    problem: str = ""
    """Why it did not."""


class Signals:
    """Reads all signals at once."""

    def __init__(
        self, prometheus: PrometheusApi, fleet: FleetSource, settings: AutoscalerSettings
    ) -> None:
        self._prometheus = prometheus
        self._fleet = fleet
        self._queries = signal_queries(settings.selector, settings.window)
        self._age = age_query(settings.selector)
        self._samples = samples_query(settings.selector, settings.window)
        self._expected = max(1.0, settings.window / settings.scrape_interval)

    async def look(self) -> Look:
        """Return every signal as it is now; what cannot be had is missing."""
        fleet, found = await asyncio.gather(self._fleet.counts(), self._ask())
        if isinstance(found, PrometheusDown):
            log.warning("blind", error=str(found))
            return Look(fleet, {}, str(found))
        return Look(fleet, found)

    async def _ask(self) -> Mapping[Signal, Reading] | PrometheusDown:
        texts = (self._age, self._samples, *self._queries.values())
        answers = await asyncio.gather(
            *(self._prometheus.number(text) for text in texts), return_exceptions=True
        )
        numbers: list[float | None] = []
        for answer in answers:
            if isinstance(answer, PrometheusDown):
                return answer
            if isinstance(answer, BaseException):
                raise answer
            numbers.append(answer)
        age, samples, *values = numbers
        gap = 1.0 - min(1.0, (samples or 0.0) / self._expected)
        old = float("inf") if age is None else age
        return {
            signal: Reading(value, old, gap)
            for signal, value in zip(self._queries, values, strict=True)
        }
