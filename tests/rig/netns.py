"""Nodes on one machine, each with a network and process namespace, connected by a bridge.

The namespaces have no names: each belongs to a process and ends with it, so nothing remains on
the machine even if this process is killed.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from serving.engine.processes import spawn
from serving.errors import EngineError, Unsupported

_CLONE_NEWNET = 0x40000000
_PREFIX_LENGTH = 24
_NAMESPACES = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")
TOOLS = Path(__file__).resolve().parents[2] / ".tools"
_PACKAGES = (
    "iproute2", "libbpf1", "libbsd0", "libcap2", "libdb5.3", "libelf1", "libmd0", "libmnl0",
    "libtirpc3", "libxtables12",
)  # fmt: skip
_HOLDER = (
    "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
    "print('up', flush=True); sys.stdin.read()"
)
"""A node's first process: it adopts orphans; when it ends, the kernel kills all others."""
_SHARED_MEMORY = 'mount -t tmpfs moe-shm /dev/shm && exec "$0" "$@"'
"""Each node has its own shared memory: OpenMP names files by process id, and these repeat."""


@dataclass(frozen=True, slots=True)
class Iproute:
    """The ``ip`` command and the libraries it needs."""

    path: str
    libraries: str = ""

    def run(self, *arguments: str) -> None:
        """Run ``ip`` with ``arguments``.

        Raises:
            Unsupported: it failed; the message has its words.
        """
        environment = dict(os.environ)
        if self.libraries:
            environment["LD_LIBRARY_PATH"] = self.libraries
        done = subprocess.run(
            [self.path, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=environment,
        )
        if done.returncode:
            raise Unsupported(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str | None:
    """Return why this machine cannot have such nodes, or ``None`` if it can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command in ("nsenter", "unshare"):
        if shutil.which(command) is None:
            return f"the command {command} (package util-linux) is missing"
    probe = subprocess.run(
        ["unshare", *_NAMESPACES, "true"], capture_output=True, check=False, timeout=300
    )
    return "this kernel or container forbids new network namespaces" if probe.returncode else None


def find_iproute(tools: Path = TOOLS) -> Iproute:
    """Return the ``ip`` command; if missing, unpack Debian's package into ``tools``.

    Raises:
        Unsupported: it is missing and cannot be fetched.
    """
    found = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found:
        return Iproute(found)
    folder = tools / "iproute2"
    if not list(folder.rglob("sbin/ip")):
        _fetch(folder)
    path = next(folder.rglob("sbin/ip"))
    libraries = {str(item.parent) for item in folder.rglob("*.so*")}
    return Iproute(str(path), ":".join(sorted(libraries)))


def _fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        for package in _PACKAGES:
            # Not every Debian release has each library; a missing one is noticed below.
            subprocess.run(
                ["apt-get", "download", package],
                cwd=downloads,
                capture_output=True,
                check=False,
                timeout=120,
            )
        for file in Path(downloads).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(file), str(folder)], check=True, timeout=300)
    if not list(folder.rglob("sbin/ip")):
        shutil.rmtree(folder, ignore_errors=True)
        raise Unsupported("the command ip is missing; install it: apt-get install iproute2")


@dataclass(slots=True)
class Node:
    """A network namespace with one address on the bridge, and a process namespace."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]
    first: int
    """Process id, on this machine, of the node's process 1."""

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command line that runs ``arguments`` on this node."""
        return [
            "nsenter", f"--target={self.first}", "--net", "--pid", "--mount",
            f"--wdns={Path.cwd()}", "--", *arguments,
        ]  # fmt: skip

    def spawn(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process on this node; it ends when this process ends."""
        return spawn(self.command(arguments), log=log, environment=environment)

    def processes(self) -> dict[int, int]:
        """Return the process ids of this node except the first: the machine's by the node's."""
        found: dict[int, int] = {}
        try:
            mine = Path(f"/proc/{self.first}/ns/pid").readlink()
        except OSError:
            return found
        for pid in psutil.pids():
            # A process may end meanwhile.
            with contextlib.suppress(OSError):
                if pid != self.first and Path(f"/proc/{pid}/ns/pid").readlink() == mine:
                    found[_inner_pid(pid)] = pid
        return found

    def clear(self) -> None:
        """Kill all processes of this node at once and wait until they are gone; keep its network.

        Raises:
            EngineError: one of them is still there after 90 s.
        """
        subprocess.run(self.command(["sh", "-c", "kill -9 -1"]), check=False, timeout=300)
        # A killed process closes its connections before it disappears.
        deadline = time.monotonic() + 90
        while self.processes():
            if time.monotonic() > deadline:
                raise EngineError(f"killed processes of node {self.name} do not end")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill all processes of this node at once, and with them its network."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        self.holder.wait()


def _inner_pid(pid: int) -> int:
    """Return the id of a process in its innermost namespace."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        name, _, ids = line.partition(":")
        if name == "NSpid":
            return int(ids.split()[-1])
    raise ProcessLookupError(pid)


class Networks:
    """A new network namespace for this process, with a bridge that connects nodes."""

    def __init__(self, ip: Iproute, address: str) -> None:
        """Move this process into a new network namespace and create the bridge ``address`` in it.

        The process must have no other threads yet: a namespace belongs to a thread.

        Raises:
            Unsupported: The kernel or container does not permit it.
        """
        self._ip = ip
        self.address = address
        self.nodes: list[Node] = []
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise Unsupported(f"cannot create a network namespace: {reason}")
        ip.run("link", "set", "lo", "up")
        ip.run("link", "add", "moe0", "type", "bridge")
        ip.run("addr", "add", f"{address}/{_PREFIX_LENGTH}", "dev", "moe0")
        ip.run("link", "set", "moe0", "up")

    def add_node(self, name: str, address: str) -> Node:
        """Create a node and connect it to the bridge.

        Raises:
            Unsupported: The kernel or container does not permit it.
        """
        holder = subprocess.Popen(
            ["unshare", *_NAMESPACES, "sh", "-c", _SHARED_MEMORY, sys.executable, "-c", _HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # It writes an error when its node is killed.
            stderr=subprocess.DEVNULL,
            # Ctrl-C goes to this process alone, which stops the others in order.
            start_new_session=True,
        )
        try:
            _read_line(holder.stdout)
            (first,) = psutil.Process(holder.pid).children()
        except BaseException:
            holder.kill()
            holder.wait()
            raise
        node = Node(name, address, holder, first.pid)
        self.nodes.append(node)
        outer, inner = _cable(node), "eth0"
        self._ip.run("link", "add", outer, "type", "veth", "peer", "name", f"p-{name}")
        self._ip.run("link", "set", f"p-{name}", "netns", str(node.first))
        self._ip.run("link", "set", outer, "master", "moe0")
        self._ip.run("link", "set", outer, "up")
        inside = Iproute("nsenter", self._ip.libraries)
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "set", f"p-{name}", "name", inner),
            ("addr", "add", f"{address}/{_PREFIX_LENGTH}", "dev", inner),
            ("link", "set", inner, "up"),
            ("route", "add", "default", "via", self.address),
        ):
            inside.run(f"--net=/proc/{node.first}/ns/net", "--", self._ip.path, *words)
        return node

    def cut(self, node: Node) -> None:
        """Drop all traffic of a node in both directions, without any error to either side."""
        self._ip.run("link", "set", _cable(node), "down")

    def mend(self, node: Node) -> None:
        """Let the node's traffic pass again."""
        self._ip.run("link", "set", _cable(node), "up")

    def lose(self, node: Node) -> None:
        """Kill a node as a power cut does: its connections are not closed."""
        self.cut(node)
        node.kill()
        self.nodes.remove(node)

    def close(self) -> None:
        """End all nodes with their processes and networks."""
        for node in self.nodes:
            node.kill()
        self.nodes.clear()


def _cable(node: Node) -> str:
    """Return the name of a node's interface at the bridge."""
    return f"v-{node.name}"


def _read_line(stream: IO[bytes] | None) -> None:
    if stream is None or not stream.readline():
        raise Unsupported("a network namespace could not be made")
