"""Killing Prometheus, the autoscaler or both under load does not affect requests.

A real router process, fake ranks over real links, a real Prometheus and the real autoscaler
process; only Ray Serve's REST API is a fake.
"""

import asyncio
import json
import subprocess
import sys

import httpx
import pytest
import yaml

from loadtest.bench.processes import router
from serving.autoscaler.actuators.ray_serve import DEPLOYMENT
from tests.integration.autoscaler.conftest import TOOLS, Prometheus
from tests.integration.autoscaler.http_fake import HttpFake
from tests.support.waiting import PATIENCE, eventually

STREAMS = 8
EACH = 40
"""Number of requests that must complete after each kill before the next one."""
TOKENS = 24
AGE = 5.0
"""Seconds after which a reading is stale."""


class ServeApi(HttpFake):
    """A fake of Ray Serve with two groups of two ranks."""

    def __init__(self):
        self.scaled = []
        super().__init__()

    def answer(self, path, sent):
        if sent is not None:
            self.scaled.append(sent)
            return 200, {"message": "accepted"}
        deployments = {DEPLOYMENT: {"target_num_replicas": 4}}
        return 200, {"applications": {"moe-serving": {"deployments": deployments}}}


class Autoscaler:
    """``moe-serving autoscaler`` as a process."""

    def __init__(self, folder, served, prometheus, serve_api):
        scaling = {
            "min_groups": 1,
            "max_groups": 4,
            "interval": 0.5,
            "prometheus_url": prometheus.url,
            "window": 20.0,
            "scrape_interval": 1.0,
            "max_age": AGE,
            "routers": [served.rest],
            "drain_addresses": [served.grpc],
            "dashboard_url": serve_api.url,
            # The fake ranks' speed does not matter here: the number of groups must stay two.
            "ttft_slo": 1000.0,
            "itl_slo": 1000.0,
            "queue_wait_slo": 1000.0,
            "metrics_port": 0,
            "record_file": str(folder / "looks.jsonl"),
        }
        self.looks = folder / "looks.jsonl"
        file = folder / "autoscaler.yaml"
        content = {"autoscaler": scaling, "group": {"data_parallel": 2}}
        file.write_text(yaml.safe_dump(content), "utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving", "autoscaler", "--config", str(file)],
            stdout=subprocess.DEVNULL,
            stderr=(folder / "autoscaler.log").open("wb"),
        )

    def sees(self):
        """Return whether its last observation had fresh signals; None if there was none."""
        if not self.looks.exists() or not (lines := self.looks.read_text().splitlines()):
            return None
        try:
            inflight = json.loads(lines[-1])["signals"].get("inflight_requests")
        except ValueError:  # a partial line: it is being written
            return None
        return inflight is not None and inflight[0] is not None and (inflight[1] or 0) <= AGE


class Load:
    """Clients that send streaming requests in a loop; every response is counted."""

    def __init__(self, url):
        self.url = url
        self.answered = 0
        self.lost = []
        self._stop = asyncio.Event()

    async def stream(self, client):
        body = {
            "model": "pocket-r1",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
        }
        while not self._stop.is_set():
            try:
                page = f"{self.url}/v1/chat/completions"
                answer = (await client.post(page, json=body, timeout=PATIENCE)).json()
                if answer["usage"]["completion_tokens"] != TOKENS:
                    self.lost.append(f"{answer['usage']}")
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.lost.append(repr(error))
            self.answered += 1

    async def more(self, count):
        """Wait for ``count`` further responses."""
        goal = self.answered + count
        await eventually(lambda: self.answered >= goal, "more answers")

    async def __aenter__(self):
        self._client = httpx.AsyncClient(trust_env=False, timeout=PATIENCE)
        self._tasks = [asyncio.create_task(self.stream(self._client)) for _ in range(STREAMS)]
        return self

    async def __aexit__(self, *_):
        self._stop.set()
        await asyncio.gather(*self._tasks)
        await self._client.aclose()


@pytest.mark.timeout(600)
async def test_requests_notice_nothing(tmp_path):
    if not (TOOLS / "prometheus").exists():
        pytest.skip("no Prometheus in .tools: .ci/tools fetches it and says if it cannot")
    with router(tmp_path) as served, served.ranks(4, token_delay=0.005):
        serve_api = ServeApi()
        target = served.rest.removeprefix("http://")
        prometheus = Prometheus(tmp_path, target, "1s")
        autoscaler = Autoscaler(tmp_path, served, prometheus, serve_api)
        try:
            async with Load(served.rest) as load:
                await eventually(autoscaler.sees, "the autoscaler's first look")
                await load.more(EACH)
                prometheus.stop()  # SIGKILL
                await eventually(lambda: autoscaler.sees() is False, "a blind autoscaler")
                await load.more(EACH)
                autoscaler.process.kill()
                autoscaler.process.wait()
                await load.more(EACH)
                prometheus = Prometheus(tmp_path, target, "1s")
                await asyncio.to_thread(prometheus.wait, "up", PATIENCE)
                await load.more(EACH)  # only the autoscaler is down
            assert load.lost == []
            assert load.answered >= 4 * EACH
            assert serve_api.scaled == []
            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
                fleet = (await client.get(f"{served.rest}/fleet", timeout=PATIENCE)).json()
            assert [group["state"] for group in fleet["groups"]] == ["ready", "ready"]
        finally:
            prometheus.stop()
            autoscaler.process.kill()
            autoscaler.process.wait()
            serve_api.close()
