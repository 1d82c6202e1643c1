"""The fabric check on nodes with separate networks; run by test_namespaces.py.

    python scenario.py FOLDER FAULT PEERS [fabric-check's flags]

FAULT is nothing; cable: the last node's link is cut before the start; pair: the last two nodes
cannot reach each other; or, with "-later", the same while data is sent. Prints a line of JSON.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.rig import netns
from tests.support.waiting import PATIENCE

PORT = 29500


def split(ip, one, other):
    """Drop all packets between two nodes; both still reach all others."""
    for here, there in ((one, other), (other, one)):
        inside = netns.Iproute("nsenter", ip.libraries)
        inside.run(
            f"--net=/proc/{here.first}/ns/net", "--", ip.path,
            "route", "add", "blackhole", f"{there.address}/32",
        )  # fmt: skip


def main():
    folder, fault, peers, *flags = sys.argv[1:]
    ip = netns.find_iproute()
    networks = netns.Networks(ip, "10.79.0.1")
    try:
        nodes = [networks.add_node(f"n{i}", f"10.79.0.{i + 2}") for i in range(int(peers))]
        logs = [Path(folder) / f"peer-{i}.log" for i in range(len(nodes))]
        kind, _, later = fault.partition("-")

        def hurt():
            if kind == "cable":
                networks.cut(nodes[-1])
            elif kind == "pair":
                split(ip, nodes[-2], nodes[-1])

        if not later:
            hurt()
        leader = f"{nodes[0].address}:{PORT}"
        processes = [
            node.spawn(
                [sys.executable, "-m", "serving", "fabric-check", "--peers", peers,
                 "--index", str(i), "--leader", leader, *flags],
                logs[i], os.environ,
            )
            for i, node in enumerate(nodes)
        ]  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        cut_at = None
        while later and time.monotonic() < deadline and processes[0].poll() is None:
            if "all-to-all, round" in logs[0].read_text():
                hurt()
                cut_at = time.monotonic()
                break
            time.sleep(0.05)
        codes = []
        for process in processes:
            try:
                codes.append(process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append(None)
        seconds = None if cut_at is None else time.monotonic() - cut_at
        left = [sorted(node.processes()) for node in nodes]
        lines = [log.read_text() for log in logs]
        found = {"codes": codes, "said": lines, "left": left, "seconds": seconds}
        sys.stdout.write(json.dumps(found) + "\n")
    finally:
        networks.close()


main()
