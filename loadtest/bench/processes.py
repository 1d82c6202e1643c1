"""A router and fake ranks, each in a process of its own, on free ports."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from loadtest.bench.clients import Case, Measured
from loadtest.bench.ranks import SCATTERED, STEPPED

_START = 180.0
_STOP = 20.0
_GROUP = 2
"""Ranks of a group."""
_MANY = 20_000

_SETTINGS: dict[str, Any] = {
    "router": {"rest_port": 0, "grpc_port": 0, "join_port": 0, "max_inflight_requests": _MANY},
    "engine": {
        "kind": "fake",
        "max_model_len": 16384,
        "max_num_seqs": 10_000,
        "args": {"max_num_batched_tokens": 16384},
    },
    "admission": {"queue_requests": _MANY, "queue_tokens": 10**9},
    "group": {"data_parallel": _GROUP},
    "telemetry": {"log_level": "error"},
}


@dataclass(frozen=True, slots=True)
class RouterProcess:
    """A running router."""

    rest: str
    grpc: str
    join: str
    pid: int
    folder: Path

    def measure(self, case: Case) -> Measured:
        """Run one case in a process of its own.

        Raises:
            RuntimeError: it failed.
        """
        words = [json.dumps(asdict(case)), self.rest, self.grpc, str(self.pid)]
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.bench.clients", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
        return Measured(**json.loads(done.stdout.splitlines()[-1]))

    def idle_share(self, seconds: float) -> float:
        """Return the share of a core that it uses without requests."""
        process = psutil.Process(self.pid)
        before = process.cpu_times()
        time.sleep(seconds)
        after = process.cpu_times()
        return float(after.user + after.system - before.user - before.system) / seconds

    @contextlib.contextmanager
    def ranks(
        self, count: int, token_delay: float = 0.0, *, stepped: bool = False
    ) -> Iterator[None]:
        """Join ``count`` fake ranks; each gives a request a token every ``token_delay`` seconds.

        ``stepped``: all requests of a rank get theirs at once; otherwise each in its own time.
        """
        settings = {**_SETTINGS, "link": {"routers": [self.join]}}
        if count < _GROUP:
            settings["group"] = {"data_parallel": 1}
        file = self.folder / "ranks.yaml"
        file.write_text(yaml.safe_dump(settings), "utf-8")
        words = [str(file), str(count), str(token_delay), STEPPED if stepped else SCATTERED]
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.ranks", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "ranks.log").open("ab"),
        )
        try:
            self._until(count)
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            _end(process)
            self._until(0)

    def _until(self, ranks: int) -> None:
        """Wait until so many ranks are in ready groups."""
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"{self.rest}/fleet", timeout=30) as answer:  # noqa: S310
                groups = json.load(answer)["groups"]
            ready = sum(len(group["ranks"]) for group in groups if group["state"] == "ready")
            if ready == ranks:
                return
            time.sleep(0.1)
        raise RuntimeError(f"{ranks} ranks did not join; logs in {self.folder}")


@contextlib.contextmanager
def router(folder: Path) -> Iterator[RouterProcess]:
    """Start a router.

    Raises:
        RuntimeError: it did not start.
    """
    file, ports = folder / "router.yaml", folder / "ports.json"
    file.write_text(yaml.safe_dump(_SETTINGS), "utf-8")
    words = ["router", "--config", str(file), "--ports-file", str(ports)]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", *words],
        # The bundled model is made for 2,048 tokens; nobody computes them here.
        env={**os.environ, "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "router.log").open("wb"),
    )
    try:
        deadline = time.monotonic() + _START
        while not ports.is_file():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no router: {(folder / 'router.log').read_text()[-2000:]}")
            time.sleep(0.1)
        found = json.loads(ports.read_text("utf-8"))
        yield RouterProcess(found["rest"], found["grpc"], found["join"], found["pid"], folder)
    finally:
        process.terminate()
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
