"""One running system for all end-to-end tests: what ``make run`` starts, in the background."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

_START_TIMEOUT = 480
_STOP_TIMEOUT = 60
_IDLE_WITHIN = 30.0


@dataclass(frozen=True)
class Stack:
    """Where the system listens."""

    rest: str
    """URL."""
    grpc: str
    """host:port."""
    model: str


def _run(*arguments: str, environment: dict[str, str], timeout: float) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        env=environment,
        timeout=timeout,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"moe-serving {' '.join(arguments)}:\n{done.stdout}"


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One group of two ranks of the bundled model, on free ports."""
    folder: Path = tmp_path_factory.mktemp("state")
    environment = {**os.environ, "MOE_SERVING_STATE_DIR": str(folder)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        # The ranks take the first free ports from here on.
        metrics = f"telemetry.rank_metrics_port={min(free.getsockname()[1], 65000)}"
    ports = ("--port", "0", "--grpc-port", "0", "--join-port", "0", "--set", metrics)
    _run("up", "--detach", "--no-sample", *ports, environment=environment, timeout=_START_TIMEOUT)
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        yield Stack(state["rest_url"], state["grpc_address"], state["model"])
    finally:
        _run("down", environment=environment, timeout=_STOP_TIMEOUT)


@pytest.fixture
def eventually_idle(stack: Stack) -> Callable[[], None]:
    """Wait until no engine runs anything; a second is enough on an idle machine."""

    def wait() -> None:
        deadline = time.monotonic() + _IDLE_WITHIN
        while True:
            fleet = httpx.get(f"{stack.rest}/fleet").json()
            ranks = [rank for group in fleet["groups"] for rank in group["ranks"]]
            busy = sum(rank["running_requests"] + rank["inflight_requests"] for rank in ranks)
            if busy == 0:
                return
            assert time.monotonic() < deadline, f"still {busy} requests: {fleet}"
            time.sleep(0.05)

    return wait
