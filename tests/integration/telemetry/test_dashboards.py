"""The Grafana dashboards: made by the code, and every query has data in a real Prometheus.

The Prometheus scraped a real router over fake ranks with traffic of every kind: parked, queued,
refused, resumed, of one session, with cached prompts, with drafts. It also scraped an autoscaler
that decided on what this Prometheus says, for a number of groups in memory.
"""

import asyncio
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from prometheus_client import start_http_server

from serving.autoscaler.loop import Autoscaler
from serving.autoscaler.prometheus import PrometheusApi, SignalReader
from serving.autoscaler.signals import FleetCounts
from serving.clock import SystemClock
from serving.engine.fake.engine import FakeEngine
from serving.engine.metrics_page import MetricsPage
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.settings import AutoscalerSettings
from serving.telemetry.metrics import AUTOSCALER_REGISTRY, FAMILIES, REGISTRY
from tests.integration.edge.stand import stand_settings, standing
from tests.integration.telemetry.prometheus import Prometheus
from tests.support.fake_actuator import FakeActuator
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRAFANA = Path(__file__).resolve().parents[3] / "deploy" / "grafana"
NAMES = ("fleet", "experts", "autoscaler")
CHAT = {"model": "pocket-r1", "ignore_eos": True}


def panels(name):
    made = json.loads((GRAFANA / f"{name}.json").read_text("utf-8"))["panels"]
    return [panel for panel in made if panel["type"] != "row"]


def queries():
    for name in NAMES:
        for panel in panels(name):
            for target in panel["targets"]:
                yield pytest.param(target["expr"], id=f"{name}: {panel['title']} {target['refId']}")


class Traffic:
    """Sends what the panels show."""

    def __init__(self, stand, rest):
        self.stand = stand
        self.rest = rest
        self.pages = []

    async def ask(self, text="hello there", tokens=8, **headers):
        body = CHAT | {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        answer = await self.rest.post("/v1/chat/completions", json=body, headers=headers)
        return answer.status_code

    async def join(self, group):
        """A group of two fake ranks with a metrics page each."""
        settings = self.stand.settings
        link = settings.link.model_copy(update={"routers": (self.stand.router.addresses.join,)})
        servers = []
        for rank in range(2):
            engine = FakeEngine(settings, rank=rank, token_delay=0.01)
            await engine.start()
            page = MetricsPage("127.0.0.1", 0)
            self.pages.append(page)
            where = RankIdentity(group, "e1", rank, 2, "127.0.0.1", metrics_address=page.address)
            servers.append(RankServer(engine, link, where))
            await servers[-1].start()
            self.stand.engines.append(engine)
        self.stand.servers += servers
        await eventually(lambda: group in self.stand.ready_groups(), f"readiness of {group}")
        return servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scraped(tmp_path_factory):
    """A Prometheus after the traffic, and the time of the last scrape."""
    settings = stand_settings(
        group={"data_parallel": 2},
        engine={"max_num_seqs": 2, "speculative": "mtp"},
        admission={"requests_per_minute": 60},
    )
    async with standing(settings, groups=0) as stand:
        router = stand.router.addresses.rest
        own, thread = start_http_server(0, "127.0.0.1", registry=AUTOSCALER_REGISTRY)
        prometheus = Prometheus(
            tmp_path_factory.mktemp("prometheus"),
            [
                {
                    "job_name": "moe-routers",
                    "static_configs": [{"targets": [router.removeprefix("http://")]}],
                },
                {
                    "job_name": "moe-ranks",
                    "http_sd_configs": [
                        {"url": f"{router}/metrics/targets", "refresh_interval": "1s"}
                    ],
                },
                {
                    "job_name": "moe-autoscaler",
                    "static_configs": [{"targets": [f"127.0.0.1:{own.server_port}"]}],
                },
            ],
        )
        try:
            async with httpx.AsyncClient(base_url=router, timeout=90) as rest:
                traffic = Traffic(stand, rest)
                await _act(traffic, prometheus)
                at = await _scale(prometheus)
            yield prometheus, at
        finally:
            prometheus.stop()
            own.shutdown()
            thread.join()
            own.server_close()
            for page in traffic.pages:
                page.close()


async def _act(traffic, prometheus):
    def wait(expression):
        return asyncio.to_thread(prometheus.until, expression)

    await wait("moe_inflight_requests")
    parked = asyncio.create_task(traffic.ask())
    await wait("moe_parked_requests == 1")
    lost = await traffic.join("g0")
    assert await parked == 200
    await wait("moe_parked_requests == 0 and moe_requests_parked_total > 0")
    await traffic.join("g1")
    await wait('count(up{job="moe-ranks"} == 1) == 4')
    crowd = await asyncio.gather(*(traffic.ask(f"{n} queue up {n}") for n in range(24)))
    assert set(crowd) == {200}
    for _ in range(3):
        assert await traffic.ask("the same long beginning " * 8, **{"x-session-id": "s"}) == 200
    stand = traffic.stand
    before = sum(engine._tokens for engine in stand.engines[:2])
    resumed = [asyncio.create_task(traffic.ask(f"{n} go on", 60)) for n in range(4)]
    await eventually(
        lambda: sum(engine._tokens for engine in stand.engines[:2]) > before + 8,
        "tokens of the group that will be lost",
    )
    for server in lost:
        await server.stop()
    assert [await answer for answer in resumed] == [200] * 4
    assert 429 in [await traffic.ask(tokens=1) for _ in range(60)]
    await wait("rate(moe_resume_seconds_count[1m]) > 0")
    await wait('rate(moe_admission_refusals_total{reason="requests_per_minute"}[1m]) > 0')
    await wait("moe_rank_link_round_trip_seconds")


class OneGroup:
    async def counts(self):
        return FleetCounts(1, 0)


async def _scale(prometheus):
    """Decide a few times, once in vain; return when all of it was scraped."""
    scaling = AutoscalerSettings(min_groups=0, max_groups=3, max_age=60.0, max_gap=0.99)
    actuator = FakeActuator(1)
    async with httpx.AsyncClient(trust_env=False) as client:
        signals = SignalReader(PrometheusApi(client, prometheus.url, 10.0), OneGroup(), scaling)
        scaler = Autoscaler(signals, actuator, scaling, SystemClock(), gpus=2.0)
        for failing in ("away", "", ""):
            actuator.failing = failing
            assert (await scaler.run_once() is None) == bool(failing)
    for expression in (
        "moe_autoscaler_vote_groups",
        "increase(moe_autoscaler_failures_total[1m])",
        "increase(moe_autoscaler_decisions_total[1m])",
        "increase(moe_autoscaler_node_handovers_total[1m])",
    ):
        await asyncio.to_thread(prometheus.until, expression)
    return time.time()


@pytest.mark.parametrize("expression", list(queries()))
async def test_every_query_has_data(scraped, expression):
    prometheus, at = scraped
    asked = expression.replace("$__rate_interval", "1m").replace("$group", ".*")
    assert "$" not in asked
    values = [value for _, value in prometheus.query(asked, at)]
    assert values, "nothing"
    assert any(math.isfinite(value) for value in values), values


async def test_prometheus_found_the_ranks_pages_by_itself(scraped):
    prometheus, at = scraped
    found = prometheus.query('process_resident_memory_bytes{job="moe-ranks"}', at)
    assert {labels["rank"] for labels, _ in found} == {"0", "1"}


async def test_series_of_a_lost_group_are_gone(scraped):
    prometheus, at = scraped
    groups = {labels["group"] for labels, _ in prometheus.query("moe_rank_running_requests", at)}
    assert groups == {"g1"}


async def test_the_committed_dashboards_are_what_the_code_makes(tmp_path):
    command = [sys.executable, GRAFANA / "build.py", "--to", tmp_path]
    made = await asyncio.to_thread(subprocess.run, command, check=True)
    assert made.returncode == 0
    for name in NAMES:
        expected = (tmp_path / f"{name}.json").read_text("utf-8")
        assert (GRAFANA / f"{name}.json").read_text("utf-8") == expected, "run build.py"


async def test_queries_use_metrics_that_exist_and_panels_say_what_they_mean():
    names = {family.name + ("_total" if family.counter else "") for family in FAMILIES}
    known = [*REGISTRY.collect(), *AUTOSCALER_REGISTRY.collect()]
    names |= {sample.name for metric in known for sample in metric.samples}
    names |= {metric.name for metric in known}
    names |= {f"{metric.name}_total" for metric in known if metric.type == "counter"}
    names |= {
        f"{metric.name}_{part}"
        for metric in known
        if metric.type == "histogram"
        for part in ("bucket", "count", "sum")
    }
    ids = []
    for name in NAMES:
        for panel in panels(name):
            assert len(panel["description"]) > 10, panel["title"]
            ids.append((name, panel["id"]))
            for target in panel["targets"]:
                assert set(re.findall(r"\bmoe_\w+", target["expr"])) <= names
    assert len(set(ids)) == len(ids)
