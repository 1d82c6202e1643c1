"""Starts and stops one layout of a group, with ``moe-serving up --detach`` and ``down``.

The layout has separate ports and a separate state directory, and does not affect a local run.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from serving.cli.doctor.machine import GIB, memory_for, memory_shortage
from serving.errors import ServingError
from serving.net import HeldPort
from serving.settings import Settings

STOP_TIMEOUT = 60.0
"""Timeout of ``down``, seconds."""
START_MARGIN = 120.0
"""Time that ``up`` may take beyond group.start_timeout, for Ray and the router, seconds."""
_LINES_KEPT = 15
_PORTS = ("router.rest_port", "router.grpc_port", "router.join_port", "ray.dashboard_port")


# The layout listens on loopback and serves only this command, so it needs no keys and no TLS.
_PRIVATE = tuple(
    word
    for name in (
        "keys_file",
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        "operator_tls_cert_file",
        "operator_tls_key_file",
        "join_tls_cert_file",
        "join_tls_key_file",
        "join_tls_client_ca_file",
    )
    for word in ("--set", f"security.{name}=null")
)


class LayoutNotStarted(ServingError):
    """A layout could not be started."""


@contextmanager
def running(ranks: int, settings: Settings, passed_on: Sequence[str]) -> Iterator[str]:
    """Run one group of ``ranks`` ranks within the context; yield the router's REST address.

    Raises:
        LayoutNotStarted: The layout did not start; the message contains the output of ``up``.
    """
    workers = ranks * settings.group.tensor_parallel
    if settings.engine.kind == "vllm" and settings.platform == "cpu":
        shortage = memory_shortage(memory_for(workers))
        if shortage > 0:
            raise LayoutNotStarted(
                f"{ranks} ranks need about {memory_for(workers) / GIB:.1f} GiB of memory, "
                f"{shortage / GIB:.1f} GiB more than available: stop other programs, or compare "
                "fewer ranks"
            )
    with tempfile.TemporaryDirectory(prefix="moe-verify-") as folder, ExitStack() as stack:
        ports = [stack.enter_context(HeldPort()).port for _ in _PORTS]
        environment = {**os.environ, "MOE_SERVING_STATE_DIR": folder}
        flags = [*passed_on, *_PRIVATE, "--groups", "1", "--ranks", str(ranks)]
        for name, port in zip(_PORTS, ports, strict=True):
            flags += ["--set", f"{name}={port}"]
        flags += ["--set", f"link.routers=[127.0.0.1:{ports[2]}]"]
        # Registered first, to also clean up after a failed or interrupted start.
        stack.callback(_stop, environment)
        _start(flags, settings, environment)
        yield f"http://127.0.0.1:{ports[0]}"


def _start(flags: list[str], settings: Settings, environment: Mapping[str, str]) -> None:
    timeout = settings.group.start_timeout + START_MARGIN
    command = [sys.executable, "-m", "serving", "up", "--detach", "--no-sample", *flags]
    code, said = shown(command, environment, timeout)
    if code is None:
        raise LayoutNotStarted(f"not ready after {timeout:.0f} s")
    if code != 0:
        raise LayoutNotStarted("moe-serving up failed:\n" + "\n".join(said))


def shown(
    command: Sequence[str], environment: Mapping[str, str], timeout: float
) -> tuple[int | None, Sequence[str]]:
    """Run a command and print its output, indented, as it arrives.

    Returns:
        The exit code (None if killed after ``timeout`` seconds) and the last lines of output.
    """
    said: deque[str] = deque(maxlen=_LINES_KEPT)
    too_late = threading.Event()
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:

        def end() -> None:
            too_late.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.start()
        try:
            for line in process.stdout or ():
                said.append(line.rstrip())
                print(f"  {said[-1]}", flush=True)
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()  # also on Ctrl-C: the start must not continue
    return None if too_late.is_set() else code, said


def _stop(environment: Mapping[str, str]) -> None:
    try:
        subprocess.run(
            [sys.executable, "-m", "serving", "down"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=STOP_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print("warning: moe-serving down did not finish in time", file=sys.stderr)
