"""Installs a peer's packages, starts its processes with a mark, waits for them and ends them."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from loadtest.bench.roles import VARIABLE, marked
from serving.net import HeldPort

START = 420.0
"""Maximum time until a deployment is ready, seconds; on an idle machine it takes less than 60."""
END = 40.0
"""Maximum time for a deployment to stop, seconds."""
_HELD: list[HeldPort] = []
_TOOLS = Path(__file__).resolve().parents[2] / ".tools"
PACKAGES = {
    "vllm-router": ("vllm-router==0.1.17", "setproctitle", "orjson", "requests"),
    # What ray.serve.llm needs beyond our lock files. ray[llm] 2.60 pins vllm 0.29, but its code
    # runs with our 0.32.
    "ray-serve-llm": ("pyarrow==26.0.1",),
    # guidellm, and what vLLM's bench client needs beyond our lock files (pandas, datasets).
    "bench-clients": (
        "guidellm==0.8.1",
        "pandas==3.1.1",
        "datasets==5.2.0",
        "aiofiles==25.1.0",
        "aiologic==0.17.1",
        "click==8.4.2",
        "culsans==0.10.0",
        "eval_type_backport==0.4.0",
        "faker==40.63.0",
        "ftfy==6.3.1",
        "html5tagger==2.0.0",
        "more-itertools==11.2.1",
        "multidict==6.9.1",
        "multiprocess==0.70.19",
        "pyarrow==26.0.1",
        "sanic==25.12.1",
        "sanic-routing==23.12.0",
        "tabulate==0.10.0",
        "tracerite==2.6.5",
        "ujson==6.1.0",
        "wcwidth==0.9.4",
        "xxhash==4.1.0",
    ),
}
"""Packages of peers, by directory in .tools; installed there to leave our pins unchanged."""


class NotRun(Exception):
    """A peer cannot be measured here; the message is the reason."""


Begin = Callable[[list[str], dict[str, str]], subprocess.Popen[bytes]]


@contextlib.contextmanager
def processes(mark: str) -> Iterator[Begin]:
    """Yield a function that starts processes with the mark; end all of them on exit."""
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
            output = Path(log.name).read_text("utf-8", "replace")
            print(output[-3000:], file=sys.stderr, flush=True)
            raise NotRun(f"{error} ({_last_line(output)})") from error
        finally:
            end_all(mark)
            for process in begun:
                # vllm-router overwrites its environment, and so the mark, with its title.
                process.kill()
                process.wait()


def end_all(mark: str) -> None:
    """End all processes with the mark, with SIGTERM first."""
    for finish in (psutil.Process.terminate, psutil.Process.kill):
        living = list(marked(mark))
        for process in living:
            with contextlib.suppress(psutil.Error):
                finish(process)
        psutil.wait_procs(living, END / 2)


def until_ready(url: str | urllib.request.Request, process: subprocess.Popen[bytes]) -> None:
    """Wait until the URL answers with JSON.

    Raises:
        NotRun: The process ended, or took too long.
    """
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotRun(f"exited with code {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
                json.load(answer)
                return
        except (urllib.error.URLError, OSError, ValueError):
            time.sleep(1.0)
    raise NotRun(f"not ready after {START:g} s")


def free_port() -> int:
    """Return a port that no other process is assigned until this one ends."""
    _HELD.append(HeldPort())
    return _HELD[-1].port


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def with_packages(peer: str) -> dict[str, str]:
    """Install a peer's packages if missing; return the environment variables for importing them.

    Raises:
        NotRun: The packages cannot be installed.
    """
    folder = _TOOLS / peer
    if not folder.is_dir():
        words = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
        done = subprocess.run(
            [sys.executable, *words, *PACKAGES[peer]], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise NotRun(f"cannot install {peer}: {_last_line(done.stderr)}")
    return {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
