"""A Python that starts with heavy modules imported: processes are forked from a server.

Importing vLLM takes five seconds of CPU time. ``tests.suite`` starts one server, which imports it
once and then forks pytest's workers and the routers of tests. The server has one thread and runs
nothing, so a forked process differs from a new one only in the modules that are imported.

    python -m tests.support.warm serve SOCKET      # the server
    python .../warm.py SOCKET ARGUMENT ...         # as ``python ARGUMENT ...``: -c CODE, -m MODULE

Without a server (``VARIABLE`` is not set) ``start`` starts a new Python.

Each connection runs one program: the client sends the arguments, the environment and its standard
streams, and receives the process id and the exit code. If the client disconnects, the program is
killed.
"""

import contextlib
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VARIABLE = "MOE_TEST_WARM_PYTHON"
"""Environment variable with the path of the server's socket."""
PRELOADED = (
    "aiohttp.web", "alembic", "hypothesis", "kubernetes.aio.client", "moto.server", "openai",
    "pytest", "schemathesis", "serving.edge.grpc.server", "serving.edge.rest.app",
    "serving.engine.fake.engine", "serving.engine.vllm_engine", "serving.router.app", "sqlalchemy",
)  # fmt: skip
_MOST = 2**20
"""Maximum size of a request, bytes."""


class Program:
    """A forked program, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(
        self,
        path: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        streams: Sequence[int],
    ) -> None:
        """Start it in the current folder, with file descriptors as its standard streams."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        request = {
            "arguments": [*arguments],
            "environment": {**environment},
            "cwd": str(Path.cwd()),
        }
        socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], list(streams))
        self._answers = self._socket.makefile("rb")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        if self.returncode is None and select.select([self._socket], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: It still runs after ``timeout`` seconds.
        """
        if self.returncode is None:
            if not select.select([self._socket], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal if it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode = int(self._answers.readline() or -signal.SIGKILL)
        self._answers.close()
        self._socket.close()


Started = Program | subprocess.Popen[bytes]


def start(
    arguments: Sequence[str], *, log: Any, environment: Mapping[str, str] | None = None
) -> Started:
    """Start ``python ARGUMENTS``, forked from the server if there is one.

    Args:
        arguments: ``-m MODULE ...`` or ``-c CODE ...``.
        log: File for its output.
        environment: By default that of this process.
    """
    environment = dict(os.environ if environment is None else environment)
    path = os.environ.get(VARIABLE)
    if path is None:
        return subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    with Path(os.devnull).open("rb") as nothing:
        output = log.fileno()
        return Program(path, arguments, environment, (nothing.fileno(), output, output))


def command() -> str:
    """Return the command line, for a shell, of a Python that is forked if there is a server."""
    path = os.environ.get(VARIABLE)
    return shlex.join([sys.executable] if path is None else _client(path))


def _client(path: str) -> list[str]:
    return [sys.executable, "-S", "-E", __file__, path]


# -- server ------------------------------------------------------------------------------------


class Server:
    """The server's process."""

    def __init__(self, modules: Sequence[str] = PRELOADED) -> None:
        """Start it; programs may be started at once, and begin when ``modules`` are imported."""
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self.path = f"{self._folder.name}/socket"
        self.command = shlex.join(_client(self.path))
        """Command line that takes the place of ``python``."""
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        listening.listen(64)
        with listening:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, "serve", str(listening.fileno()), *modules],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
            )

    def close(self) -> float:
        """Stop it; return the CPU time of it and of its programs that have ended, seconds."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._folder.cleanup()
        return usage.ru_utime + usage.ru_stime


def serve(listening: socket.socket, modules: Sequence[str]) -> None:
    """Import, then fork a guard for every connection."""
    import gc

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its programs end first
    gc.disable()
    for name in modules:
        importlib.import_module(name)
    for name, module in [*sys.modules.items()]:
        if "." not in name:
            # pytest would warn that it cannot rewrite the assertions of its plugins' packages.
            module.__doc__ = f"{module.__doc__ or ''}\nPYTEST_DONT_REWRITE"
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        # Standard input ends with the process that started the server.
        if sys.stdin in select.select([listening, sys.stdin], [], [])[0]:
            return
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _guard(connection)
            os._exit(0)
        connection.close()


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _guard(connection: socket.socket) -> None:
    """Fork the program, report its end, and kill it if the client disconnects."""
    data, streams, _, _ = socket.recv_fds(connection, _MOST, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(_MOST)
    request = json.loads(data)
    ended, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    if (pid := os.fork()) == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (connection, ended, wakes):
            os.close(each if isinstance(each, int) else each.detach())
        _become(request["arguments"], request["environment"], request["cwd"], streams)
    for each in streams:
        os.close(each)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % pid)
    while True:
        if connection in select.select([connection, ended], [], [])[0]:
            os.kill(pid, signal.SIGKILL)  # the client went away
            os.waitpid(pid, 0)
            return
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            return
        os.read(ended, 100)


def _become(
    arguments: list[str], environment: dict[str, str], cwd: str, streams: list[int]
) -> None:
    """Run as ``python ARGUMENTS``; does not return."""
    import runpy
    import traceback
    import types

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    # Data that the server's own objects may have read or not yet written are not this program's.
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(  # type: ignore[misc]
        2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = [each for each in arguments if each != "-u"]
    kind, what, sys.argv[1:] = words[0], words[1], words[2:]
    code = 0
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = "-c"
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(words: list[str]) -> int:
    """Serve, or run a program and return its exit code."""
    if words[0] == "serve":
        serve(socket.socket(fileno=int(words[1])), words[2:])
        return 0
    return Program(words[0], words[1:], os.environ, (0, 1, 2)).wait() & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
