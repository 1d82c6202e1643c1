"""--calibrate: a deployment behind a router, loads with results from a model, and the file."""

import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving.cli.main import main
from serving.cli.plan import measure
from serving.planner.accelerators import ACCELERATORS
from serving.planner.calibration import Observed
from serving.planner.constants import PEERS
from serving.planner.group import Group, Role
from serving.planner.roofline import Limit, StepModel
from serving.planner.workload import Workload
from tests.support.planning import MODELS

TRUE = dataclasses.replace(PEERS, layer_seconds=6e-3, decode=2.0, first_token_seconds=0.03)
LINE = ["plan", "--model", "pocket-r1", "--gpu", "cpu", "--ep", "2", "--max-model-len", "2048"]
LINE += ["--prompt-tokens", "200", "--output-tokens", "64", "--rate", "1", "--layout", "mixed"]


class Router:
    """A server whose /fleet can be changed."""

    def __init__(self) -> None:
        router = self
        self.content: Any = {"groups": [{"state": "ready", "world_size": 2}]}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(router.content).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def router() -> Iterator[Router]:
    found = Router()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer loads with the results of a deployment with the constants TRUE."""
    steps = StepModel(MODELS["pocket-r1"], ACCELERATORS["cpu"], 2, 1, TRUE)
    group = Group(steps, Role.MIXED, 2048, 64.0, Limit.SEQUENCES)

    def load(
        at: measure.Deployment, words: Sequence[str], prompt: int, output: int, _key: str | None
    ) -> list[Observed]:
        loads = words[words.index("--concurrency" if "--concurrency" in words else "--rate") + 1]
        rates = [float(one) for one in loads.split(",")]
        if "--concurrency" in words:
            rates = [0.2 * streams**0.7 for streams in rates]
        found = []
        for rate in rates:
            served = group.serve(Workload(rate, prompt, output), rate)
            assert served is not None
            found.append(Observed(prompt, output, rate, served.ttft, served.itl, at.groups))
        return found

    monkeypatch.setattr(measure, "_loaded", load)


def test_a_calibration_replaces_the_constants_and_states_its_error(
    router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "calibration.json"
    line = [*LINE, "--calibrate", router.url, "--save-calibration", str(file), "--output", "json"]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert "fitted to a running deployment" in found["notice"]
    assert found["constants"]["engine"] == 1
    compared = found["calibration"]["compared"]
    assert [one["name"] for one in compared] == [
        "TTFT mean, ms",
        "ITL mean, ms",
        "latency mean, ms",
    ]
    for one in compared:
        assert one["predicted"] == pytest.approx(one["seen"], rel=0.1)
    # The file gives the same plan without the deployment.
    assert main([*LINE, "--calibration", str(file), "--output", "json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["plans"] == found["plans"]
    assert main([*LINE, "--calibration", str(file)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "On a load outside the fit" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"groups": []}, "no group is ready", id="no groups"),
        pytest.param(
            {"groups": [{"state": "joining", "world_size": 2}]}, "no group is ready", id="j"
        ),
        pytest.param({"detail": "no"}, "requires a moe-serving router", id="another server"),
        pytest.param(
            {"groups": [{"state": "ready", "world_size": n} for n in (1, 2)]},
            "[1, 2] ranks",
            id="d",
        ),
    ],
)
def test_deployments_that_cannot_be_measured(
    router: Router, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    router.content = content
    assert main([*LINE, "--calibrate", router.url]) == 1
    assert message in capsys.readouterr().err


def test_no_router_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--calibrate", "http://127.0.0.1:1"]) == 1
    assert "cannot reach the router" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("{", id="no JSON"),
        pytest.param("[]", id="list"),
        pytest.param("{}", id="empty"),
        pytest.param('{"constants": {"matmul": 1}}', id="one constant"),
        pytest.param('{"constants": 3}', id="no mapping"),
    ],
)
def test_broken_calibration_files(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(content, "utf-8")
    assert main([*LINE, "--calibration", str(file)]) == 1
    assert "is not a calibration from plan --save-calibration" in capsys.readouterr().err
