"""The queries of the signals, on a real Prometheus that scrapes our declared metrics."""

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.autoscaler.prometheus import PrometheusApi, SignalReader
from serving.autoscaler.signals import FleetCounts, Signal
from serving.settings import AutoscalerSettings
from serving.telemetry import fleet_metrics, metrics
from tests.support.waiting import PATIENCE, eventually

FLEET = FleetCounts(2, 0)


class Fleet:
    async def counts(self):
        return FLEET


class Router:
    """The router's metrics, copied from their declarations: names, labels and buckets."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.inflight = self._copy(Gauge, metrics.INFLIGHT_REQUESTS)
        self.ttft = self._copy(Histogram, metrics.TIME_TO_FIRST_TOKEN)
        self.itl = self._copy(Histogram, metrics.INTER_TOKEN_LATENCY)
        self.wait = self._copy(Histogram, metrics.ADMISSION_WAIT)
        self.queue = self._copy(Gauge, metrics.ADMISSION_QUEUE)
        self.queue_tokens = self._copy(Gauge, metrics.ADMISSION_QUEUE_TOKENS)
        self.tokens = self._copy(Counter, metrics.GENERATED_TOKENS)
        self.price = self._copy(Gauge, metrics.GPU_HOUR_PRICE)
        family = fleet_metrics.MODEL_BATCH_LINES
        self.lines = Gauge(family.name, family.help, family.labels, registry=self.registry)
        family = fleet_metrics.GROUPS
        self.groups = Gauge(family.name, family.help, family.labels, registry=self.registry)

    def _copy(self, kind, metric):
        more = {"buckets": metric._kwargs["buckets"]} if kind is Histogram else {}
        return kind(
            metric._name,
            metric._documentation,
            metric._labelnames,
            registry=self.registry,
            **more,
        )

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def settings(url: str, window: float = 60.0) -> AutoscalerSettings:
    """Return settings whose window still contains what a test did before the machine stalled."""
    return AutoscalerSettings(
        prometheus_url=url,
        selector='job="moe-routers"',
        window=window,
        scrape_interval=0.2,
        max_age=5.0,
        prometheus_timeout=PATIENCE,
    )


async def look(scaling: AutoscalerSettings):
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        api = PrometheusApi(client, scaling.prometheus_url, scaling.prometheus_timeout)
        return await SignalReader(api, Fleet(), scaling).read()


async def test_an_idle_router_has_no_quantiles_and_an_empty_queue(prometheus, page):
    router = Router()
    router.tokens.inc(0)
    page.text = router.text()
    prometheus.wait("count_over_time(moe_inflight_requests[2s]) > 5")

    async def fresh():
        """Return the signals, unless the machine has just missed scrapes."""
        found = await look(settings(prometheus.url, 2.0))
        return found if found.signals[Signal.TTFT_P90].fresh(5.0, 0.7) else None

    found = await eventually(fresh)
    assert found.signals[Signal.TTFT_P90].value is None
    for signal in (Signal.QUEUE_REQUESTS, Signal.REQUEST_RATE, Signal.TOKEN_RATE, Signal.INFLIGHT):
        assert found.signals[signal].value == 0, signal


async def test_every_signal_of_a_busy_router(prometheus, page):
    router = Router()
    router.groups.labels("ready").set(2)
    router.groups.labels("joining").set(1)
    router.inflight.set(7)
    router.wait.labels("standard")
    router.queue.labels("standard").set(3)
    router.queue.labels("batch").set(2)
    router.queue_tokens.set(900)
    router.lines.labels("a").set(30)
    router.lines.labels("b").set(12)
    router.price.set(2.5)
    page.text = router.text()
    prometheus.wait("moe_inflight_requests")
    for _ in range(100):
        router.ttft.observe(0.3)
        router.itl.observe(0.02)
        router.wait.labels("standard").observe(0.7)
    router.tokens.inc(500)
    page.text = router.text()
    prometheus.wait("sum(rate(moe_time_to_first_token_seconds_count[60s]))")

    async def young():
        """Return the signals, unless the machine has just missed scrapes."""
        found = await look(settings(prometheus.url))
        return found if all(reading.age < 5 for reading in found.signals.values()) else None

    found = await eventually(young)
    assert not found.problem
    assert found.fleet == FLEET
    values = {signal: reading.value for signal, reading in found.signals.items()}
    assert values[Signal.TTFT_P90] == pytest.approx(0.38)  # the bucket 0.2 to 0.4
    assert values[Signal.ITL_P90] == pytest.approx(0.0235, abs=0.001)
    assert values[Signal.QUEUE_WAIT_P90] == pytest.approx(0.76)
    assert values[Signal.QUEUE_REQUESTS] == 5
    assert values[Signal.QUEUE_TOKENS] == 900
    # Two queries, two evaluation times: the windows differ by at most one scrape.
    assert values[Signal.TOKEN_RATE] == pytest.approx(values[Signal.REQUEST_RATE] * 5, rel=0.2)
    assert values[Signal.REQUEST_RATE] > 0
    assert values[Signal.INFLIGHT] == 7
    assert values[Signal.READY_GROUPS] == 2
    assert values[Signal.BATCH_LINES] == 42
    assert values[Signal.GPU_HOUR_PRICE] == 2.5


async def test_gaps_and_age_are_seen(prometheus, page):
    page.text = Router().text()
    prometheus.wait("moe_inflight_requests + 1")
    # With a window of 600 s at 200 ms there should be 3000 scrapes: nearly all are missing.
    scaling = settings(prometheus.url, 600.0)
    found = await look(scaling)
    assert found.signals[Signal.INFLIGHT].gap > 0.5
    page.text = None
    # A failed scrape ends the series: no sample is left that has an age.
    prometheus.wait("absent(moe_inflight_requests)")
    found = await look(scaling)
    assert not found.signals[Signal.INFLIGHT].fresh(5.0, 0.99)
    assert found.signals[Signal.INFLIGHT].value is None


async def test_prometheus_away_is_a_problem_and_no_error():
    found = await look(settings("http://127.0.0.1:1"))
    assert found.signals == {}
    assert found.fleet == FLEET
    assert "does not respond" in found.problem


async def test_a_broken_query_is_a_problem(prometheus):
    prometheus.wait("vector(1)")
    scaling = settings(prometheus.url).model_copy(update={"selector": 'job="'})
    assert "Prometheus returned 400" in (await look(scaling)).problem
