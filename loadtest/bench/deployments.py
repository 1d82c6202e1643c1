"""The servers that are compared, each with the same engine, model and number of ranks.

One at a time: two ranks take about 5 GiB. Every process carries a mark in its environment, by
which its CPU time is counted and by which it is ended.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from loadtest.bench.clients import Protocol
from loadtest.bench.roles import VARIABLE, marked
from serving.engine.environment import engine_environment
from serving.settings import Settings

RANKS = 2
START = 420.0
"""Seconds that a deployment has to become ready; on an idle machine it takes less than 60."""
_END = 40.0
_TOOLS = Path(__file__).resolve().parents[2] / ".tools"
PACKAGES = {
    "vllm-router": ("vllm-router==0.1.17", "setproctitle", "orjson", "requests"),
    # All that ray.serve.llm asks for beside what our locks hold. ray[llm] 2.60 pins vllm 0.29,
    # but its code runs with our 0.32 as it is.
    "ray-serve-llm": ("pyarrow==26.0.1",),
}
"""What peers need, by their folder in .tools: installed beside, so that our pins stay."""


class NotRun(Exception):
    """A peer cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a peer is asked."""

    peer: str
    """Key of ``peers.PEERS``."""
    protocol: Protocol
    address: str
    fronts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployment:
    """Running servers that share engines."""

    mark: str
    doors: tuple[Door, ...]
    missing: dict[str, str]
    """Peers that belong here and did not start, with the reason."""


def engine_arguments(settings: Settings) -> dict[str, Any]:
    """Return vLLM's arguments for the peers' engines: those of our ranks."""
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


def _flags(arguments: dict[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield str(value)


@contextlib.contextmanager
def vllm_server() -> Iterator[Deployment]:
    """Start vLLM's own API server, and vllm-router in front of it.

    Raises:
        NotRun: it did not start.
    """
    settings = Settings()
    port, mark = _free_port(), uuid4().hex
    with _processes(mark) as begin:
        server = begin(
            [
                sys.executable,
                *("-m", "vllm.entrypoints.openai.api_server"),
                *("--model", settings.model.path),
                *("--served-model-name", settings.model.name),
                *_flags(engine_arguments(settings)),
                "--disable-uvicorn-access-log",
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            engine_environment(settings),
        )
        url = f"http://127.0.0.1:{port}"
        _until_ready(f"{url}/v1/models", server)
        doors, missing = [Door("vllm", "rest", url, (server.pid,))], {}
        try:
            front, router_url = _vllm_router(begin, url)
            doors.append(Door("vllm-router", "rest", router_url, (server.pid, front)))
        except NotRun as error:
            missing["vllm-router"] = str(error)
        yield Deployment(mark, tuple(doors), missing)


def _vllm_router(begin: "_Begin", url: str) -> tuple[int, str]:
    path = _with_packages("vllm-router")
    port, metrics = _free_port(), _free_port()
    process = begin(
        [
            *(sys.executable, "-m", "vllm_router.launch_router"),
            *("--worker-urls", url, "--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-port", str(metrics), "--policy", "round_robin"),
        ],
        path,
    )
    address = f"http://127.0.0.1:{port}"
    _until_ready(f"{address}/v1/models", process)
    return process.pid, address


def _with_packages(peer: str) -> dict[str, str]:
    """Install what a peer needs, once, and return the environment that finds it.

    Raises:
        NotRun: it cannot be installed.
    """
    folder = _TOOLS / peer
    if not folder.is_dir():
        words = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
        done = subprocess.run(
            [sys.executable, *words, *PACKAGES[peer]], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise NotRun(f"{peer} cannot be installed: {_last_line(done.stderr)}")
    return {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}


@contextlib.contextmanager
def ours() -> Iterator[Deployment]:
    """Start ``moe-serving up`` with one group.

    Raises:
        NotRun: it did not start.
    """
    mark = uuid4().hex
    ports = [_free_port() for _ in range(3)]
    with _processes(mark) as begin, tempfile.TemporaryDirectory(prefix="moe-bench-") as folder:
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
        _until_ready(f"{url}/readyz", up)
        try:
            yield Deployment(
                mark,
                (
                    Door("ours-rest", "rest", url),
                    Door("ours-grpc", "grpc", f"127.0.0.1:{ports[1]}"),
                ),
                {},
            )
        finally:
            up.terminate()  # it ends its own, Ray included
            with contextlib.suppress(subprocess.TimeoutExpired):
                up.wait(_END)


@contextlib.contextmanager
def ray_serve_llm() -> Iterator[Deployment]:
    """Start Ray Serve LLM's data-parallel app on a Ray of its own.

    Raises:
        NotRun: it did not start.
    """
    settings = Settings()
    port, mark = _free_port(), uuid4().hex
    # A short name: Ray puts its sockets below it.
    with _processes(mark) as begin, tempfile.TemporaryDirectory(prefix="moe-") as folder:
        environment = engine_environment(settings) | _with_packages("ray-serve-llm")
        app = begin(
            [
                *(sys.executable, "-m", "loadtest.bench.ray_serve_llm"),
                *(str(port), json.dumps(engine_arguments(settings))),
            ],
            environment | {"TMPDIR": folder, "RAY_raylet_start_wait_time_s": f"{START:g}"},
        )
        url = f"http://127.0.0.1:{port}"
        # Its ingress lists models before it has ranks: only a token says that it is ready.
        _until_ready(_one_token(url, settings.model.name), app)
        try:
            yield Deployment(mark, (Door("ray-serve-llm", "rest", url),), {})
        finally:
            app.terminate()  # it ends its own, Ray included
            with contextlib.suppress(subprocess.TimeoutExpired):
                app.wait(_END)
            end_all(mark)  # nothing may write into the folder that is deleted next


def _one_token(url: str, model: str) -> urllib.request.Request:
    body = json.dumps({"model": model, "prompt": "1+1", "max_tokens": 1})
    return urllib.request.Request(  # noqa: S310
        f"{url}/v1/completions", body.encode(), {"content-type": "application/json"}
    )


_Begin = Callable[[list[str], dict[str, str]], subprocess.Popen[bytes]]


@contextlib.contextmanager
def _processes(mark: str) -> Iterator[_Begin]:
    """Start processes with the mark; they, and all others that bear it, end with the block."""
    begun: list[subprocess.Popen[bytes]] = []
    with tempfile.NamedTemporaryFile(prefix="moe-bench-", suffix=".log") as log:

        def begin(words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                words,
                env={**os.environ, **environment, VARIABLE: mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            begun.append(process)
            return process

        try:
            yield begin
        except NotRun as error:
            said = Path(log.name).read_text("utf-8", "replace")
            print(said[-3000:], file=sys.stderr, flush=True)
            raise NotRun(f"{error} ({_last_line(said)})") from error
        finally:
            end_all(mark)
            for process in begun:
                # vllm-router writes its title over its environment, and the mark with it.
                process.kill()
                process.wait()


def end_all(mark: str) -> None:
    """End every process that bears the mark, politely at first."""
    for finish in (psutil.Process.terminate, psutil.Process.kill):
        processes = list(marked(mark))
        for process in processes:
            with contextlib.suppress(psutil.Error):
                finish(process)
        psutil.wait_procs(processes, _END / 2)


def _until_ready(url: str | urllib.request.Request, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotRun(f"it ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
                json.load(answer)
                return
        except (urllib.error.URLError, OSError, ValueError):
            time.sleep(1.0)
    raise NotRun(f"it was not ready after {START:g} s")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing was said"
