"""The fleets of the measurements: pocket-r1 on vLLM, or simulated ranks."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.batch.stepping_ranks import READY
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE

RANKS = 2
SIMULATED_SEQUENCES = 64
"""Sequences of a simulated rank."""
SIMULATED_COSTS = 0.100, 0.0003125, 0.0001
"""Seconds of a simulated step: fixed, for each sequence, for each prompt token. A full rank takes
1.2 times as long as an empty one, as on a GPU whose decoding is limited by its memory's bandwidth.
The steps are several times as long as a GPU's, so that router and clients do not limit the rate."""


@dataclass(frozen=True, slots=True)
class RunningFleet:
    """A router with one group."""

    url: str
    """The router's REST URL."""
    pid: int
    """Process of the router with simulated ranks, of the supervisor with vLLM."""


@contextlib.contextmanager
def fleet(kind: str, **batch: object) -> Iterator[RunningFleet]:
    """Run a router with batches and one group.

    Args:
        kind: ``vllm`` or ``simulated``.
        batch: Settings of batches.
    """
    with tempfile.TemporaryDirectory(prefix="moe-interference-") as folder:
        ports = {name: held_port() for name in ("rest_port", "grpc_port", "join_port")}
        settings = {
            "router": ports,
            "link": {"routers": [f"127.0.0.1:{ports['join_port']}"]},
            "group": {"data_parallel": RANKS},
            "batch": {"directory": f"{folder}/batch", **batch},
            "telemetry": {"log_level": "error"},
            "admission": {"queue_requests": 4096, "max_wait": 60.0},
        }
        if kind == "simulated":
            settings["engine"] = {
                "kind": "fake",
                "max_model_len": 512,
                "max_num_seqs": SIMULATED_SEQUENCES,
            }
        file = Path(folder) / "settings.yaml"
        file.write_text(yaml.safe_dump(settings), "utf-8")
        log = Path(folder) / "log"
        start = _simulated if kind == "simulated" else _vllm
        with log.open("wb") as output, start(file, output) as process:
            url = f"http://127.0.0.1:{ports['rest_port']}"
            try:
                _wait(url)
            except TimeoutError:
                sys.stderr.write(log.read_text("utf-8", "replace")[-4000:])
                raise
            yield RunningFleet(url, process.pid)


@contextlib.contextmanager
def _process(words, output, **options) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "VLLM_CONFIGURE_LOGGING": "0", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stderr=output, env=environment, **options
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _vllm(file, output) -> Iterator[subprocess.Popen]:
    words = ["serving", "up", "--no-sample", "--config", str(file)]
    with _process(words, output, stdout=output) as process:
        yield process


@contextlib.contextmanager
def _simulated(file, output) -> Iterator[subprocess.Popen]:
    costs = map(str, SIMULATED_COSTS)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        _process(["serving", "router", "--config", str(file)], output, stdout=output) as router,
        _process(["tests.batch.stepping_ranks", str(file), "g0", *costs], output, **pipes) as ranks,
    ):
        assert ranks.stdout.readline().decode().strip() == READY
        yield router


def _wait(url: str) -> None:
    until = time.monotonic() + max(PATIENCE, 180.0)
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/readyz", timeout=5) as response,
        ):
            if response.status == 200:
                return
        time.sleep(0.2)
    raise TimeoutError("the fleet did not become ready")
