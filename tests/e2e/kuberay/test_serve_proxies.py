"""KubeRay considers a worker pod ready when Ray Serve's proxy in it answers.

With the rendered chart and real Ray, the proxy answers, and no request to a proxy harms a rank.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.engine import misdirected
from tests.e2e.kuberay import cluster, observing
from tests.helm.chart import find, render
from tests.rig import netns

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not())),
    pytest.mark.skipif(shutil.which("wget") is None, reason="the probes call wget"),
]

Seen = dict[str, Any]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Start the RayService of pocket-r1-cpu and return the observations."""
    folder = tmp_path_factory.mktemp("kuberay")
    rendered, out = folder / "rayservice.yaml", folder / "seen.json"
    rendered.write_text(yaml.safe_dump(find(render("pocket-r1-cpu"), "RayService")), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", observing.__name__, str(rendered), str(out)],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: Seen = json.loads(out.read_text("utf-8"))
    return found


def workers(seen: Seen) -> set[str]:
    return {replica["node_ip"] for replica in seen["replicas"]}


def test_serve_takes_the_rendered_configuration_from_the_operator(seen: Seen) -> None:
    assert seen["put"][0] == 200
    assert {replica["state"] for replica in seen["replicas"]} == {"RUNNING"}
    # One rank per pod, none on the head.
    assert workers(seen) == set(cluster.WORKERS)


def test_every_pod_with_a_rank_becomes_ready(seen: Seen) -> None:
    assert set(seen["readiness"]) == workers(seen)
    for address, probe in seen["readiness"].items():
        assert probe["code"] == 0, (address, probe)
        assert probe["said"].split() == ["success", "success"]


def test_the_other_probes_of_the_operator_succeed(seen: Seen) -> None:
    assert set(seen["probes"]) == {cluster.HEAD, *cluster.WORKERS}
    for address, probes in seen["probes"].items():
        code, output = probes.pop("older")
        assert (code, "success" in output) == (0, True), (address, output)
        for name, (status, text) in probes.items():
            assert (status, "success" in text) == (200, True), (address, name, text)
    assert "operator" in seen["probes"][cluster.HEAD]


def test_a_request_to_the_applications_route_is_told_where_to_go(seen: Seen) -> None:
    assert set(seen["refused"]) == {cluster.HEAD, *cluster.WORKERS}
    for answers in seen["refused"].values():
        *routed, elsewhere = answers
        for answer in routed:
            assert answer["status"] == 421, answer
            assert answer["type"] == "application/json"
            if not answer["request"].startswith("HEAD"):
                error = json.loads(answer["body"])["error"]
                assert (error["message"], error["code"]) == (misdirected.MESSAGE, 421)
        # Serve's own message: no application serves a router's paths.
        assert elsewhere["status"] == 404, elsewhere
    assert seen["websocket"] == "HTTP/1.1 421 Misdirected Request"


def test_a_burst_of_requests_leaves_the_ranks_alone(seen: Seen) -> None:
    # The rest are rejected by Serve: more than max_queued_requests are queued.
    assert sum(seen["burst"].values()) == observing.REQUESTS
    assert set(seen["burst"]) <= {"421", "503"}
    assert seen["burst"]["421"] > 0
    assert seen["groups_after"] == seen["groups"]
    assert set(seen["groups"].values()) == {"ready"}
    assert seen["replicas_after"] == seen["replicas"]
    assert seen["answer"]
    for code, output in seen["healthy_after"].values():
        assert code == 0, output


def test_without_a_route_no_pod_would_be_ready(seen: Seen) -> None:
    """The proxies return 200 because of the route: without it, the same applications yield 503."""
    assert seen["without_route"]["put"] == 200
    assert {status for status, _ in seen["without_route"]["health"].values()} == {503}
