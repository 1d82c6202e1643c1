"""Separate networks on one machine: a router's, and one for each node, joined by a bridge.

The namespaces have no names: each belongs to a process, and ends with it. Whatever happens
to us, nothing is left behind on the machine.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from serving.cli import supervisor
from serving.errors import Unsupported

_CLONE_NEWNET = 0x40000000
_PREFIX_LENGTH = 24
TOOLS = Path(__file__).resolve().parents[2] / ".tools"
_PACKAGES = (
    "iproute2", "libbpf1", "libbsd0", "libcap2", "libdb5.3", "libelf1", "libmd0", "libmnl0",
    "libtirpc3", "libxtables12",
)  # fmt: skip
_HOLDER = "import sys; print('up', flush=True); sys.stdin.read()"


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
    """Return what keeps this machine from having network namespaces, or ``None``."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("nsenter") is None:
        return "the command nsenter (package util-linux) is missing"
    # In a child: this process stays where it is.
    probe = subprocess.run(
        [sys.executable, "-c", f"import ctypes; exit(ctypes.CDLL(None).unshare({_CLONE_NEWNET}))"],
        check=False,
        timeout=20,
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
    """A network of its own with one address on the bridge."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command line that runs ``arguments`` in this network."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--", *arguments]

    def spawn(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process in this network that ends with us."""
        return supervisor.spawn(self.command(arguments), log=log, environment=environment)


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
            ["unshare", "--net", sys.executable, "-c", _HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        node = Node(name, address, holder)
        self.nodes.append(node)
        _read_line(holder.stdout)
        outer, inner = f"v-{name}", "eth0"
        self._ip.run("link", "add", outer, "type", "veth", "peer", "name", f"p-{name}")
        self._ip.run("link", "set", f"p-{name}", "netns", str(holder.pid))
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
            inside.run(f"--net=/proc/{holder.pid}/ns/net", "--", self._ip.path, *words)
        return node

    def close(self) -> None:
        """End the nodes' holders, and with them their networks."""
        for node in self.nodes:
            node.holder.kill()
            node.holder.wait()
        self.nodes.clear()


def _read_line(stream: IO[bytes] | None) -> None:
    if stream is None or not stream.readline():
        raise Unsupported("a network namespace could not be made")
