"""Separate nodes on one machine: networks of their own, joined by a bridge, and processes apart.

The namespaces have no names: each belongs to a process, and ends with it. Whatever happens
to us, nothing is left behind on the machine.
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

from serving.cli.local import supervisor
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
"""A node's first process: it takes over orphans, and when it ends the kernel kills the others."""
_SHARED_MEMORY = 'mount -t tmpfs moe-shm /dev/shm && exec "$0" "$@"'
"""Shared memory of its own for each node: OpenMP names its files by process ids, which repeat."""


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
            timeout=20,
            env=environment,
        )
        if done.returncode:
            raise Unsupported(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str | None:
    """Return what keeps this machine from having such nodes, or ``None``."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command in ("nsenter", "unshare"):
        if shutil.which(command) is None:
            return f"the command {command} (package util-linux) is missing"
    probe = subprocess.run(
        ["unshare", *_NAMESPACES, "true"], capture_output=True, check=False, timeout=20
    )
    return "this kernel or container refuses new network namespaces" if probe.returncode else None


def find_iproute(tools: Path = TOOLS) -> Iproute:
    """Return the ``ip`` command; if it is missing, unpack Debian's into ``tools``.

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
            # Not every Debian has each of the libraries; what is missing shows below.
            subprocess.run(
                ["apt-get", "download", package],
                cwd=downloads,
                capture_output=True,
                check=False,
                timeout=120,
            )
        for file in Path(downloads).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(file), str(folder)], check=True, timeout=60)
    if not list(folder.rglob("sbin/ip")):
        shutil.rmtree(folder, ignore_errors=True)
        raise Unsupported("the command ip is missing; install it: apt-get install iproute2")


@dataclass(slots=True)
class Node:
    """A network of its own with one address on the bridge, and processes of its own."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]
    first: int
    """The node's process 1, as this machine counts."""

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command line that runs ``arguments`` on this node."""
        return [
            "nsenter", f"--target={self.first}", "--net", "--pid", "--mount",
            f"--wdns={Path.cwd()}", "--", *arguments,
        ]  # fmt: skip

    def spawn(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process on this node that ends with us."""
        return supervisor.spawn(self.command(arguments), log=log, environment=environment)

    def processes(self) -> dict[int, int]:
        """Return the processes of this node but the first: this machine's ids by the node's."""
        found: dict[int, int] = {}
        try:
            mine = Path(f"/proc/{self.first}/ns/pid").readlink()
        except OSError:
            return found
        for pid in psutil.pids():
            # A process may end while it is looked at.
            with contextlib.suppress(OSError):
                if pid != self.first and Path(f"/proc/{pid}/ns/pid").readlink() == mine:
                    found[_inner_pid(pid)] = pid
        return found

    def clear(self) -> None:
        """Kill all processes of this node at once and see them gone; node and network stay.

        Raises:
            EngineError: one of them is still there after 20 s.
        """
        subprocess.run(self.command(["sh", "-c", "kill -9 -1"]), check=False, timeout=20)
        # A killed process closes its connections first; it is there for a moment after that.
        deadline = time.monotonic() + 20
        while self.processes():
            if time.monotonic() > deadline:
                raise EngineError(f"killed processes of node {self.name} do not end")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill all processes of this node at once; its network goes with them."""
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
    """This process's own new network, with a bridge that nodes are joined to."""

    def __init__(self, ip: Iproute, address: str) -> None:
        """Move this process into a new network and make the bridge ``address`` there.

        The process must have no other threads yet: a namespace belongs to a thread.

        Raises:
            Unsupported: the machine refuses.
        """
        self._ip = ip
        self.address = address
        self.nodes: list[Node] = []
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise Unsupported(f"cannot make a network namespace: {reason}")
        ip.run("link", "set", "lo", "up")
        ip.run("link", "add", "moe0", "type", "bridge")
        ip.run("addr", "add", f"{address}/{_PREFIX_LENGTH}", "dev", "moe0")
        ip.run("link", "set", "moe0", "up")

    def add_node(self, name: str, address: str) -> Node:
        """Make a network for a node and join it to the bridge.

        Raises:
            Unsupported: the machine refuses.
        """
        holder = subprocess.Popen(
            ["unshare", *_NAMESPACES, "sh", "-c", _SHARED_MEMORY, sys.executable, "-c", _HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # When its node is killed, it complains.
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for us, who stop the rest in order.
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
        """Pull a node's cable: nothing passes in either direction, and nobody is told."""
        self._ip.run("link", "set", _cable(node), "down")

    def mend(self, node: Node) -> None:
        """Plug it in again."""
        self._ip.run("link", "set", _cable(node), "up")

    def lose(self, node: Node) -> None:
        """Kill a node as a power cut does: nothing of its end is heard outside."""
        self.cut(node)
        node.kill()
        self.nodes.remove(node)

    def close(self) -> None:
        """End all nodes, their processes and their networks."""
        for node in self.nodes:
            node.kill()
        self.nodes.clear()


def _cable(node: Node) -> str:
    """Return the name of a node's cable at the bridge."""
    return f"v-{node.name}"


def _read_line(stream: IO[bytes] | None) -> None:
    if stream is None or not stream.readline():
        raise Unsupported("a network namespace could not be made")
