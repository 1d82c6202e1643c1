"""The command as a process, with a real Prometheus and fakes of router and Ray dashboard.

The last test stops Prometheus.
"""

import signal
import subprocess
import sys

import httpx
import pytest

from serving.autoscaler.actuators.ray_serve import DEPLOYMENT
from serving.autoscaler.reports import PATH
from tests.integration.autoscaler.http_fake import HttpFake
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE, wait_until

IDLE = """\
moe_inflight_requests 0
moe_admission_queue_tokens 0
moe_generated_tokens_total 0
moe_time_to_first_token_seconds_count 0
"""


class Outside(HttpFake):
    """A router's /fleet and Ray's dashboard in one server."""

    def __init__(self):
        self.parked = 0
        self.replicas = 2
        self.posts: list[dict] = []
        self.reports: list[dict] = []
        super().__init__()

    def answer(self, path, sent):
        if path == PATH:
            self.reports.append(sent)
            return 200, {}
        if sent is not None:
            self.posts.append(sent)
            self.replicas = sent["target_num_replicas"]
            return 200, {}
        if path == "/fleet":
            group = {
                "group_id": "g0",
                "state": "ready",
                "since_unix_seconds": 1.0,
                "ranks": [{"node": "n", "inflight_requests": 0}],
            }
            ready = min(1, self.replicas // 2)
            return 200, {"groups": [group] * ready, "inflight_requests": self.parked}
        deployments = {DEPLOYMENT: {"target_num_replicas": self.replicas}}
        return 200, {"applications": {"moe-serving": {"deployments": deployments}}}


@pytest.fixture
def outside():
    made = Outside()
    yield made
    made.close()


def command(what, prometheus, outside, port, *more):
    sets = {
        "min_groups": 0,
        "interval": 0.1,
        "prometheus_url": prometheus.url,
        "scrape_interval": 0.2,
        # A busy machine misses scrapes of 200 ms; the policy's tests cover age and gaps.
        "window": 60,
        "max_age": 60,
        "max_gap": 0.99,
        "down_window": 0.5,
        "idle_timeout": 0.5,
        "routers": f'["{outside.url}"]',
        "router_timeout": PATIENCE,
        "ray_timeout": PATIENCE,
        "prometheus_timeout": PATIENCE,
        "drain_addresses": '["127.0.0.1:1"]',
        "dashboard_url": outside.url,
        "metrics_port": port,
    }
    flags = [part for name, value in sets.items() for part in ("-s", f"autoscaler.{name}={value}")]
    return [sys.executable, "-m", "serving", "autoscaler", what, *flags, *more]


def metric(port, name):
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE, trust_env=False).text
    except httpx.TransportError:
        return None
    lines = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[1]) if lines else None


@pytest.fixture
def port():
    return held_port()


def test_explain_changes_nothing(prometheus, page, outside, port):
    page.text = IDLE
    prometheus.wait("count_over_time(moe_inflight_requests[60s]) > 4")
    done = subprocess.run(
        command("explain", prometheus, outside, port),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "decision  1 -> 1 groups" in done.stdout
    assert "inflight_requests                 0   age" in done.stdout
    assert outside.posts == outside.reports == []


def test_to_zero_then_blind_then_woken_by_a_parked_request_then_stopped(
    prometheus, page, outside, port, tmp_path
):
    page.text = IDLE
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command("run", prometheus, outside, port), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: outside.replicas == 0, "no scale to zero")
        prometheus.stop()
        wait_until(lambda: metric(port, "moe_autoscaler_blind") == 1, "not blind")
        assert outside.posts == [{"target_num_replicas": 0}]
        outside.parked = 2
        wait_until(lambda: outside.replicas == 2, "not woken")
        # Routers have seen both changes, for their consoles.
        changes = [(1, 0), (0, 1)]
        wait_until(
            lambda: (
                [
                    (each["current"], each["target"])
                    for each in outside.reports
                    if each["current"] != each["target"]
                ][:2]
                == changes
            ),
            "the changes were not reported",
        )
        outside.server.socket.close()  # Ray and the routers are down too: the process keeps running
        failures = 'moe_autoscaler_failures_total{stage="target"}'
        wait_until(lambda: (metric(port, failures) or 0) > 1, "no failure counted")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
