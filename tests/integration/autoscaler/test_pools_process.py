"""The command for two models as a process, with fakes of router and Ray dashboard.

There is no Prometheus, because starting a group for a parked request must not depend on it.
"""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from serving.autoscaler.actuators.ray_serve import DEPLOYMENT
from serving.autoscaler.reports import PATH
from tests.integration.autoscaler.http_fake import HttpFake
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE, wait_until


class Outside(HttpFake):
    """A router's /fleet and Ray's dashboard in one server."""

    def __init__(self):
        self.parked = dict.fromkeys(("a", "b"), 0)
        self.replicas = {"moe-serving-a-default": 2, "moe-serving-b-default": 0}
        self.posts: list[tuple[str, int]] = []
        self.reported: set[str] = set()
        super().__init__()

    def answer(self, path, sent):
        if path == PATH:
            self.reported.add(sent["pool"])
            return 200, {}
        if sent is not None:
            app = path.split("/")[4]
            self.posts.append((app, sent["target_num_replicas"]))
            self.replicas[app] = sent["target_num_replicas"]
            return 200, {}
        if path == "/fleet":
            return 200, self.fleet()
        return 200, {
            "applications": {
                app: {"deployments": {DEPLOYMENT: {"target_num_replicas": replicas}}}
                for app, replicas in self.replicas.items()
            }
        }

    def fleet(self):
        groups, models = [], []
        for model, parked in self.parked.items():
            app = f"moe-serving-{model}-default"
            ready = self.replicas[app] // 2
            groups += [
                {
                    "group_id": f"{model}{number}",
                    "state": "ready",
                    "since_unix_seconds": 1.0,
                    "app": app,
                    "model": model,
                    "pool": "default",
                    "ranks": [{"node": f"n{model}{number}", "inflight_requests": 0}],
                }
                for number in range(ready)
            ]
            models.append(
                {"name": model, "queued_requests": 0 if ready else parked, "ready": bool(ready)}
            )
        return {"groups": groups, "inflight_requests": 0, "models": models}


@pytest.fixture
def outside():
    made = Outside()
    yield made
    made.close()


@pytest.fixture
def config(outside, tmp_path):
    """Settings of two models; the second may be scaled to zero."""
    file = tmp_path / "settings.yaml"
    pools = {"a": {"min_groups": 1}, "b": {"min_groups": 0}}
    file.write_text(
        yaml.safe_dump(
            {
                "group": {"data_parallel": 2},
                "models": [
                    {"name": name, "path": "/m", "pools": [{"autoscaler": scaling}]}
                    for name, scaling in pools.items()
                ],
                "autoscaler": {
                    "interval": 0.1,
                    "max_groups": 2,
                    "max_gpus": 4,
                    "prometheus_url": "http://127.0.0.1:1",
                    "routers": [outside.url],
                    "router_timeout": PATIENCE,
                    "ray_timeout": PATIENCE,
                    "drain_addresses": ["127.0.0.1:1"],
                    "dashboard_url": outside.url,
                    "metrics_port": held_port(),
                    "record_file": str(tmp_path / "seen.jsonl"),
                    "state_file": str(tmp_path / "state.json"),
                },
            }
        )
    )
    return file


def command(what, config, *more):
    return [sys.executable, "-m", "serving", "autoscaler", what, "--config", str(config), *more]


def run(*args):
    return subprocess.run(
        command(*args), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_explain_shows_each_pool_and_changes_nothing(outside, config):
    outside.parked["b"] = 1
    done = run("explain", config)
    assert done.returncode == 0, done.stderr
    assert "pool a/default\nsignals" in done.stdout
    assert "decision  1 -> 1 groups" in done.stdout
    assert "pool b/default\nsignals" in done.stdout
    assert "decision  0 -> 1 groups: parked: 1 requests are parked" in done.stdout
    assert outside.posts == []


def test_a_model_at_zero_is_woken_alone_and_its_recording_replays(outside, config, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command("run", config), stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until((tmp_path / "state.json").exists, "no first cycle")
        assert outside.posts == []
        outside.parked["b"] = 2
        wait_until(lambda: outside.posts, "not woken")
        pools = {"a/default", "b/default"}
        wait_until(lambda: outside.reported == pools, "reports for the console")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
    assert outside.posts == [("moe-serving-b-default", 2)]
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert list(json.loads((tmp_path / "state.json").read_text())["pools"]) == [
        "a/default",
        "b/default",
    ]
    done = run("run", config, "--replay", str(tmp_path / "seen.jsonl"))
    assert done.returncode == 0, done.stderr
    woken = [line for line in done.stdout.splitlines() if "0 -> 1" in line]
    assert woken
    assert all(line.startswith("b/default") for line in woken)
