"""``moe-serving up`` in the foreground of a separate process, on free ports."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from serving.cli.local.state import RunState, StateFile
from serving.client.credentials import local_access
from serving.engine.processes import end, living
from tests.support.waiting import PATIENCE

STOP_LIMIT = 15.0
"""Seconds from Ctrl-C until every process is gone, on an idle machine."""
START_LIMIT = 900
FREE_PORTS = ("--port", "0", "--grpc-port", "0", "--join-port", "0")


class Up:
    """One ``moe-serving up`` in the foreground."""

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "MOE_SERVING_STATE_DIR": str(folder),
            **environment,
        }
        self.errors = folder / "stderr"
        folder.mkdir(exist_ok=True)
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving", "up", *FREE_PORTS, *flags],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self.environment,
                text=True,
                # As in a terminal: Ctrl-C is sent to the whole group.
                start_new_session=True,
            )
        self.lines: list[str] = []

    def wait_line(self, pattern: str) -> str:
        """Read output until a line matches; return the line. The test's timeout bounds the wait."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line
        raise AssertionError(f"ended with {self.process.wait()}: {self.said()}")

    def read_rest(self) -> str:
        """Read output until the process ends."""
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        self.lines += rest.splitlines()
        return rest

    def said(self) -> str:
        """Return all output so far."""
        return "\n".join(self.lines) + "\n" + self.errors.read_text()

    def error_lines(self) -> list[str]:
        """Return the error lines that it has printed."""
        return [line for line in self.errors.read_text().splitlines() if line.startswith("error:")]

    def state(self) -> RunState:
        """Return the state file's content."""
        state = StateFile(self.folder).read()
        assert state is not None
        return state

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command with the same state folder."""
        return subprocess.run(
            [sys.executable, "-m", "serving", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT,
        )

    def get(self, path: str) -> Any:
        """Return JSON from the router."""
        headers = local_access(self.folder).headers()
        request = urllib.request.Request(self.state().rest_url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def all_processes(self) -> list[psutil.Process]:
        """Return every process of this run: descendants, and those in the state file."""
        found = {process.pid: process for process in living(self.state().processes)}
        with contextlib.suppress(psutil.NoSuchProcess):
            me = psutil.Process(self.process.pid)
            found |= {process.pid: process for process in [me, *me.children(recursive=True)]}
        return list(found.values())

    def end(self) -> None:
        """Kill everything left over from a failed test."""
        with contextlib.suppress(AssertionError):
            end(self.state().processes, grace=0.0)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def started(folder: Path, *flags: str, **environment: str) -> Iterator[Up]:
    up = Up(folder, *flags, **environment)
    try:
        yield up
    finally:
        up.end()


def gone_within(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Wait for processes to end; return those that did not.

    An idle machine needs at most ``seconds``. If it takes longer, this is printed; a process is
    only returned if it still exists after ``PATIENCE``, because a busy machine proves nothing.
    """
    began = time.monotonic()
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    if (took := time.monotonic() - began) > seconds:
        print(f"processes ended after {took:.1f} s, expected within {seconds:g} s")  # noqa: T201
    return [
        f"{process.pid} {process.name()}"
        for process in alive
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]
