"""Nodes of ``netns``: the effects of a cut cable and a lost node, seen from outside."""

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.rig import netns
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not()))

SCENARIO = """
import os, socket, subprocess, sys
from pathlib import Path
from tests.rig import netns

ANSWER = "import socket, sys\\n" \\
    "s = socket.create_server((sys.argv[1], 7000))\\n" \\
    "c, _ = s.accept()\\n" \\
    "while data := c.recv(1): c.sendall(data)\\n"

networks = netns.Networks(netns.find_iproute(), "10.78.0.1")
node = networks.add_node("a", "10.78.0.2")
other = networks.add_node("b", "10.78.0.3")
log = Path(sys.argv[1])
for one in (node, other):
    one.spawn([sys.executable, "-c", ANSWER, one.address], log, os.environ)

def dial(address):
    while True:
        try:
            return socket.create_connection((address, 7000), timeout=300)
        except ConnectionRefusedError:
            pass  # not listening yet

def echo(client):
    try:
        client.sendall(b"x")
        return client.recv(1)
    except TimeoutError:
        return "silence"

client, second = dial(node.address), dial(other.address)
assert echo(client) == b"x" == echo(second)
(inner,), (outer,) = zip(*node.processes().items())
assert inner < 100 < outer and not node.processes().items() & other.processes().items()

note = ["sh", "-c", "echo mine > /dev/shm/moe-note"]
subprocess.run(node.command(note), check=True, timeout=300)
assert not Path("/dev/shm/moe-note").exists(), "shared memory is shared between nodes"

networks.cut(node)
client.settimeout(0.5)
assert echo(client) == "silence", "something passed"
assert echo(second) == b"x", "the other node's cable was cut, too"
networks.mend(node)
client.settimeout(300)
assert client.recv(1) == b"x", "what was sent meanwhile did not come when the cable was mended"

networks.lose(node)
client.settimeout(0.5)
assert echo(client) == "silence", "a lost node said goodbye"
assert not Path(f"/proc/{outer}").exists() and not node.processes()
assert echo(second) == b"x"

other.clear()
assert second.recv(1) == b"", "a node whose processes are killed has closed its connections"
assert not other.processes() and other.holder.poll() is None
print("holders", *(one.first for one in networks.nodes))
networks.close()
print("all as it should be")
"""


def test_cut_mend_lose_and_clear(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "log").read_text()
    holders, verdict = done.stdout.splitlines()
    assert verdict == "all as it should be"
    assert not any(psutil.pid_exists(int(pid)) for pid in holders.split()[1:])


def test_nodes_end_with_who_made_them(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from tests.rig import netns\n"
        "networks = netns.Networks(netns.find_iproute(), '10.78.0.1')\n"
        "node = networks.add_node('a', '10.78.0.2')\n"
        "print(node.first, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    first = int(done.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(first).wait(PATIENCE)
    assert not psutil.pid_exists(first)
