"""A router and fake ranks, in separate processes, on free ports."""

import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
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
"""Number of ranks in a group."""
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
    ca: Path | None = None
    """CA file of the router's certificate; None if REST and gRPC do not use TLS."""

    def measure(self, case: Case) -> Measured:
        """Run a case in a separate process.

        Raises:
            RuntimeError: The case failed.
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
        """Return the router's CPU use without requests, as a share of one core."""
        process = psutil.Process(self.pid)
        before = process.cpu_times()
        time.sleep(seconds)
        after = process.cpu_times()
        return float(after.user + after.system - before.user - before.system) / seconds

    @contextlib.contextmanager
    def ranks(
        self, count: int, token_delay: float = 0.0, *, stepped: bool = False
    ) -> Iterator[None]:
        """Join ``count`` fake ranks.

        Args:
            count: Number of ranks.
            token_delay: Seconds between two tokens of a request.
            stepped: Generate the tokens of all requests of a rank in one step, as real engines do;
                otherwise use a timer for each request.
        """
        group = {"data_parallel": 1} if count < _GROUP else _SETTINGS["group"]
        kind = STEPPED if stepped else SCATTERED
        with self._joined(count, {"group": group}, str(token_delay), kind):
            yield

    @contextlib.contextmanager
    def groups(self, models: Sequence[str]) -> Iterator[None]:
        """Join groups of fake ranks, one after the other.

        Args:
            models: Name of each group's model; all of them use the bundled model's files.
        """
        with contextlib.ExitStack() as stack:
            for number, model in enumerate(models, 1):
                own = {"model": {"name": model}, "group": _SETTINGS["group"]}
                words = ("0.0", SCATTERED, f"{number}-")
                joined = self._joined(_GROUP, own, *words, ready=number * _GROUP)
                stack.enter_context(joined)
            yield

    @contextlib.contextmanager
    def _joined(
        self, count: int, own: dict[str, Any], *words: str, ready: int | None = None
    ) -> Iterator[None]:
        """Run a process with ``count`` ranks until ``ready`` ranks (default: count) are ready."""
        ready = count if ready is None else ready
        settings = {**_SETTINGS, "link": {"routers": [self.join]}, **own}
        file = self.folder / f"ranks-{ready}.yaml"
        file.write_text(yaml.safe_dump(settings), "utf-8")
        words = (str(file), str(count), *words)
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.ranks", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "ranks.log").open("ab"),
        )
        try:
            self._until(ready)
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            _end(process)
            self._until(ready - count)

    def _until(self, ranks: int) -> None:
        """Wait until ``ranks`` ranks are in ready groups."""
        deadline = time.monotonic() + _START
        tls = None if self.ca is None else ssl.create_default_context(cafile=str(self.ca))
        while time.monotonic() < deadline:
            with urllib.request.urlopen(  # noqa: S310
                f"{self.rest}/fleet", timeout=30, context=tls
            ) as answer:
                groups = json.load(answer)["groups"]
            ready = sum(len(group["ranks"]) for group in groups if group["state"] == "ready")
            if ready == ranks:
                return
            time.sleep(0.1)
        raise RuntimeError(f"{ranks} ranks did not join; logs in {self.folder}")


@contextlib.contextmanager
def router(
    folder: Path, *, tls: bool = False, settings: Mapping[str, Any] | None = None
) -> Iterator[RouterProcess]:
    """Start a router.

    Args:
        folder: Directory for the router's files.
        tls: Serve REST and gRPC over TLS, with a certificate of a temporary CA.
        settings: More settings, by group.

    Raises:
        RuntimeError: The router did not start.
    """
    file, ports = folder / "router.yaml", folder / "ports.json"
    chosen, ca = dict(_SETTINGS), None
    for name, group in (settings or {}).items():
        merged = isinstance(group, dict) and name in chosen
        chosen[name] = chosen[name] | group if merged else group
    if tls:
        chosen["security"], ca = _certificate(folder)
    file.write_text(yaml.safe_dump(chosen), "utf-8")
    words = ["router", "--config", str(file), "--ports-file", str(ports)]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", *words],
        # The bundled model is limited to 2,048 tokens; fake ranks do not run it.
        env={**os.environ, "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "router.log").open("wb"),
    )
    try:
        deadline = time.monotonic() + _START
        while not ports.is_file():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the router did not start: {(folder / 'router.log').read_text()[-2000:]}"
                )
            time.sleep(0.1)
        found = json.loads(ports.read_text("utf-8"))
        yield RouterProcess(found["rest"], found["grpc"], found["join"], found["pid"], folder, ca)
    finally:
        process.terminate()
        _end(process)


def _certificate(folder: Path) -> tuple[dict[str, str], Path]:
    """Write a certificate for loopback; return the router's settings and the CA file."""
    import trustme

    authority, ca = trustme.CA(), folder / "ca.pem"
    made = authority.issue_cert("127.0.0.1")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    ca.write_bytes(authority.cert_pem.bytes())
    return {"tls_cert_file": str(cert), "tls_key_file": str(key)}, ca


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
