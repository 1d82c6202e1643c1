"""``moe-serving router`` as a process: addresses in a file, signals, a port in use."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import httpx
import pytest

from serving.api.v1 import inference_pb2, inference_pb2_grpc
from serving.edge.auth.keys import digest_of
from tests.support import warm
from tests.support.waiting import PATIENCE

START_LIMIT = 300
"""Seconds; most of it is vLLM's imports on a busy machine."""
FREE_PORTS = {"port": 0, "grpc-port": 0, "join-port": 0}


class Process:
    """A router process; ended with the test."""

    def __init__(self, folder: Path, *more: str, new: bool = True, **ports: int) -> None:
        """Start it as a new Python, or else as ``tests.support.warm`` does."""
        self.ports_file = folder / "ports.json"
        self.log = folder / "log"
        flags = [f"--{name}={port}" for name, port in {**FREE_PORTS, **ports}.items()]
        flags += more
        words = ["-m", "serving", "router", *flags]
        environment = {**os.environ, "MOE_SERVING_PORTS_FILE": str(self.ports_file)}
        with self.log.open("wb") as log:
            self.process: warm.Started = (
                subprocess.Popen([sys.executable, *words], env=environment, stdout=log, stderr=log)
                if new
                else warm.start(words, log=log, environment=environment)
            )

    def addresses(self) -> dict:
        deadline = time.monotonic() + START_LIMIT
        while not self.ports_file.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return json.loads(self.ports_file.read_text())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def test_start_serve_and_sigterm(tmp_path):
    with Process(tmp_path) as router:
        addresses = router.addresses()
        assert addresses["pid"] == router.process.pid
        assert httpx.get(f"{addresses['rest']}/livez", timeout=PATIENCE).status_code == 200
        assert httpx.get(f"{addresses['rest']}/readyz", timeout=PATIENCE).status_code == 503
        for address in (addresses["grpc"], addresses["join"]):
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        refused = httpx.post(
            f"{addresses['rest']}/v1/completions",
            json={"model": "pocket-r1", "prompt": "secret words"},
            headers={"x-request-id": "mine", "x-request-timeout-ms": "300"},
            timeout=PATIENCE,
        )
        assert refused.status_code == 504
        maps = Path(f"/proc/{router.process.pid}/maps").read_text()
        assert "/ray/_raylet" not in maps
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0
        lines = [json.loads(line) for line in router.log.read_text().splitlines() if line]
        assert [line["event"] for line in lines if line["logger"] == "serving.router"] == [
            "router is up",
            "router draining",
            "router stopped",
        ]
        (request,) = [line for line in lines if line["event"] == "request"]
        assert (request["request_id"], request["outcome"]) == ("mine", "DEADLINE_EXCEEDED")
        assert "secret" not in router.log.read_text()


def test_no_key_and_no_prompt_is_logged_even_in_debug(tmp_path):
    key, wrong, prompt = "moe-the-right-key", "moe-a-wrong-key", "my-dearest-secret"
    keys = tmp_path / "keys.yaml"
    keys.write_text(f'keys: [{{id: a, tenant: alice, hash: "{digest_of(key)}"}}]')
    flags = (f"security.keys_file={keys}", "telemetry.log_level=debug")
    words = [word for flag in flags for word in ("--set", flag)]
    with Process(tmp_path, *words, new=False) as router:
        addresses = router.addresses()
        with httpx.Client(base_url=addresses["rest"], timeout=PATIENCE) as rest:
            body = {"model": "pocket-r1", "prompt": prompt}
            soon = {"x-request-timeout-ms": "300"}  # they would wait for a rank
            statuses = []
            for headers, content in (
                ({"authorization": f"Bearer {key}", **soon}, json.dumps(body)),
                ({"authorization": f"Bearer {wrong}"}, json.dumps(body)),
                ({"authorization": wrong}, json.dumps(body)),
                ({"x-api-key": key, **soon}, json.dumps({**body, "stream": True})),
                ({"x-api-key": key}, json.dumps({**body, "max_tokens": prompt})),
                ({"x-api-key": key}, json.dumps({**body, prompt: prompt, "n": -1})),
                ({"x-api-key": key}, '{"prompt": "' + prompt),
                ({"x-api-key": key, "x-priority": wrong}, json.dumps(body)),
            ):
                sent = {"content-type": "application/json", **headers}
                answer = rest.post("/v1/completions", content=content, headers=sent)
                statuses.append(answer.status_code)
            assert statuses[1:3] == [401, 401]
            assert 500 not in statuses
            assert {*statuses[4:]} == {400}
        with grpc.insecure_channel(addresses["grpc"]) as channel:
            complete = inference_pb2_grpc.InferenceServiceStub(channel).Complete
            for shown in (key, wrong):
                with pytest.raises(grpc.RpcError):
                    complete(
                        inference_pb2.CompleteRequest(model="pocket-r1", text=prompt),
                        metadata=(("authorization", f"Bearer {shown}"),),
                        timeout=1,
                    )
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0
        text = router.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    tenants = [line.get("tenant") for line in lines if line["event"] == "request"]
    assert tenants.count("alice") >= 5
    for secret in (key, wrong, prompt):
        assert secret not in text


@pytest.mark.parametrize("name", ["port"])
def test_taken_port_is_one_clear_line_and_exit_1(tmp_path, name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Process(tmp_path, **{name: port}) as router:
            assert router.process.wait(START_LIMIT) == 1
        text = router.log.read_text()
        assert text.startswith("error: ")
        assert str(port) in text
        assert "Traceback" not in text
