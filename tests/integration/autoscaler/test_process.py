"""The command as a process: real Prometheus, made-up router and Ray dashboard, Ctrl-C.

The test that ends Prometheus is the last one.
"""

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from serving.autoscaler.actuators.ray_serve import DEPLOYMENT

IDLE = """\
moe_inflight_requests 0
moe_admission_queue_tokens 0
moe_generated_tokens_total 0
moe_time_to_first_token_seconds_count 0
"""
PATIENCE = 45.0


class Outside:
    """A router's /fleet and Ray's dashboard in one server."""

    def __init__(self):
        self.parked = 0
        self.replicas = 2
        self.posts: list[dict] = []
        outside = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/fleet":
                    ready = min(1, outside.replicas // 2)
                    group = {
                        "group_id": "g0",
                        "state": "ready",
                        "since_unix_seconds": 1.0,
                        "ranks": [{"node": "n", "inflight_requests": 0}],
                    }
                    self._send({"groups": [group] * ready, "inflight_requests": outside.parked})
                else:
                    deployments = {DEPLOYMENT: {"target_num_replicas": outside.replicas}}
                    self._send({"applications": {"moe-serving": {"deployments": deployments}}})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outside.posts.append(body)
                outside.replicas = body["target_num_replicas"]
                self._send({})

            def _send(self, content):
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


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
        "window": 2,
        "max_age": 4,
        # A busy machine misses scrapes of 200 ms; that gaps hold is for the policy's tests.
        "max_gap": 0.9,
        "down_window": 0.5,
        "idle_timeout": 0.5,
        "routers": f'["{outside.url}"]',
        "drain_addresses": '["127.0.0.1:1"]',
        "dashboard_url": outside.url,
        "metrics_port": port,
    }
    flags = [part for name, value in sets.items() for part in ("-s", f"autoscaler.{name}={value}")]
    return [sys.executable, "-m", "serving", "autoscaler", what, *flags, *more]


def wait_for(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def metric(port, name):
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False).text
    except httpx.TransportError:
        return None
    lines = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[1]) if lines else None


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_explain_changes_nothing(prometheus, page, outside, port):
    page.text = IDLE
    prometheus.wait("count_over_time(moe_inflight_requests[2s]) > 4")
    done = subprocess.run(
        command("explain", prometheus, outside, port),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "decision  1 -> 1 groups" in done.stdout
    assert "inflight_requests                 0   age" in done.stdout
    assert outside.posts == []


def test_to_zero_then_blind_then_woken_by_a_parked_request_then_stopped(
    prometheus, page, outside, port, tmp_path
):
    page.text = IDLE
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command("run", prometheus, outside, port), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for("no scale to zero", lambda: outside.replicas == 0)
        prometheus.stop()
        wait_for("not blind", lambda: metric(port, "moe_autoscaler_blind") == 1)
        assert outside.posts == [{"target_num_replicas": 0}]
        outside.parked = 2
        wait_for("not woken", lambda: outside.replicas == 2)
        outside.server.socket.close()  # Ray and the routers are away too: nothing ends
        failures = 'moe_autoscaler_failures_total{stage="target"}'
        wait_for("no failure counted", lambda: (metric(port, failures) or 0) > 1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
