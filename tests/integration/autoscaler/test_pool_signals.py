"""The queries by model and pool, on a real Prometheus that scrapes a router's registry."""

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from serving.autoscaler.pool_signals import PoolSignalReader
from serving.autoscaler.pools import FleetPools
from serving.autoscaler.prometheus import PrometheusApi
from serving.autoscaler.signals import Signal
from serving.fleet.collector import fleet_registry
from serving.fleet.models import ModelStatus
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, MemberState
from serving.settings import AutoscalerSettings
from serving.telemetry import metrics
from serving.telemetry.model_counters import ModelCounters
from tests.support.waiting import PATIENCE, eventually

FLEET = FleetPools({"a/x": 1}, {}, {})


class Fleet:
    async def pools(self):
        return FLEET


class Router:
    """What a router exports, from its own collector."""

    def __init__(self):
        self.counters = {"a": ModelCounters(["x", "y"]), "org/b": ModelCounters(["x"])}
        self.queued = {"a": 0, "org/b": 0}
        group = GroupSnapshot("g", "e", MemberState.READY, "", 0.0, 1, model="a", pool="x")
        self._registry = fleet_registry(
            lambda: FleetSnapshot("r", (group,)), self._models, self.counters
        )
        pulse = CollectorRegistry()
        Gauge(metrics.INFLIGHT_REQUESTS._name, "x", registry=pulse).set(1)
        Gauge(metrics.GPU_HOUR_PRICE._name, "x", registry=pulse).set(2.5)
        self._pulse = pulse

    def _models(self):
        return tuple(
            ModelStatus(
                name,
                pools=tuple(counters.pools),
                queued_requests=self.queued[name],
                queued_tokens=100 * self.queued[name],
                ready=True,
            )
            for name, counters in self.counters.items()
        )

    def text(self):
        return (generate_latest(self._pulse) + generate_latest(self._registry)).decode()


async def look(url, **changes):
    settings = AutoscalerSettings(
        prometheus_url=url,
        selector='job="moe-routers"',
        window=60.0,  # it still contains what the test did before the machine stalled
        scrape_interval=0.2,
        max_age=5.0,
        prometheus_timeout=PATIENCE,
        **changes,
    )
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        api = PrometheusApi(client, settings.prometheus_url, settings.prometheus_timeout)
        pools = [("a", "x"), ("a", "y"), ("org/b", "x")]
        return await PoolSignalReader(api, Fleet(), settings, pools).read()


def values(readings):
    return {signal: reading.value for signal, reading in readings.items()}


async def test_signals_of_a_busy_and_an_idle_pool(prometheus, page):
    router = Router()
    page.text = router.text()
    prometheus.wait("moe_inflight_requests")
    busy = router.counters["a"].pools["x"]
    for _ in range(100):
        busy.first_token.observe(0.3)
        busy.inter_token.observe(0.02)
        router.counters["a"].wait.observe(0.7)
    busy.generated_tokens += 500
    busy.inflight_requests = 7
    router.queued["a"] = 5
    router.counters["a"].lines = 42
    page.text = router.text()
    prometheus.wait("sum(rate(moe_pool_time_to_first_token_seconds_count[60s]))")

    async def young():
        """Return the signals, unless the machine has just missed scrapes."""
        found = await look(prometheus.url)
        pools = found.measured.pools.values()
        return (
            found if all(reading.age < 5 for each in pools for reading in each.values()) else None
        )

    found = await eventually(young)
    assert not found.problem
    assert found.fleet == FLEET
    seen = values(found.measured.pools["a/x"])
    assert seen[Signal.TTFT_P90] == pytest.approx(0.38)  # the bucket 0.2 to 0.4
    assert seen[Signal.ITL_P90] == pytest.approx(0.0235, abs=0.001)
    # Two queries, two evaluation times: the windows differ by at most one scrape.
    assert seen[Signal.TOKEN_RATE] == pytest.approx(seen[Signal.REQUEST_RATE] * 5, rel=0.2)
    assert seen[Signal.REQUEST_RATE] > 0
    assert seen[Signal.INFLIGHT] == 7
    assert seen[Signal.READY_GROUPS] == 1
    assert seen[Signal.GPU_HOUR_PRICE] == 2.5
    queue = values(found.measured.models["a"])
    assert queue[Signal.QUEUE_WAIT_P90] == pytest.approx(0.76)
    assert (queue[Signal.QUEUE_REQUESTS], queue[Signal.QUEUE_TOKENS]) == (5, 500)
    assert queue[Signal.BATCH_LINES] == 42
    for key in ("a/y", "org/b/x"):
        idle = values(found.measured.pools[key])
        assert idle[Signal.TTFT_P90] is None, "a quantile over nothing"
        assert idle[Signal.TOKEN_RATE] == idle[Signal.REQUEST_RATE] == idle[Signal.INFLIGHT] == 0
        assert idle[Signal.READY_GROUPS] == 0
    assert values(found.measured.models["org/b"])[Signal.QUEUE_REQUESTS] == 0


async def test_prometheus_away_is_a_problem_and_no_error():
    found = await look("http://127.0.0.1:1")
    assert found.measured.pools == {}
    assert found.fleet == FLEET
    assert "does not respond" in found.problem
