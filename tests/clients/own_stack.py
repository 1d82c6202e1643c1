"""``moe-serving up`` with keys for every client, on free ports."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.clients.clients import CLIENTS
from tests.clients.target import Target, add_to, make_keys
from tests.e2e.running import STOP_LIMIT, Up, gone_within, started
from tests.support.ports import held_port

_IDLE_WITHIN = 30.0


@contextlib.contextmanager
def own_stack(sets: Sequence[str]) -> Iterator[tuple[Target, Up]]:
    """Start a router and a group of two ranks of pocket-r1; stop everything at the end.

    Args:
        sets: further settings, NAME=VALUE.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys, added = make_keys(client.name for client in CLIENTS)
        (folder / "keys.yaml").write_text(add_to("", added), "utf-8")
        # The ranks use the first free ports from this one.
        metrics = f"telemetry.rank_metrics_port={min(held_port(), 65000)}"
        flags = [f"security.keys_file={folder / 'keys.yaml'}", metrics, *sets]
        with started(folder, "--no-sample", *(w for s in flags for w in ("--set", s))) as up:
            up.wait_line("^READY ")
            state = up.state()
            yield Target(state.rest_url, state.grpc_address, state.model, keys), up
            processes = up.all_processes()
            os.killpg(up.process.pid, signal.SIGINT)
            if left := gone_within(processes, STOP_LIMIT):
                raise RuntimeError(f"still there after Ctrl-C: {', '.join(left)}")


def still_busy(up: Up) -> int:
    """Wait until no request runs; return the number of those still running."""
    deadline = time.monotonic() + _IDLE_WITHIN
    while True:
        ranks = [rank for group in up.get("/fleet")["groups"] for rank in group["ranks"]]
        busy: int = sum(rank["running_requests"] + rank["inflight_requests"] for rank in ranks)
        busy += up.get("/load")["server_load"]
        if busy == 0 or time.monotonic() > deadline:
            return busy
        time.sleep(0.1)
