"""``moe-serving leave``: drains the ranks of this machine. A pod's preStop hook runs it."""

import time

from serving.cli.ops.operate import DRAIN_TIMEOUT, DrainTimeoutOption
from serving.engine.router_link.node_drain import request_leave, serving_ranks

_POLL_SECONDS = 0.2
_SLACK = 5.0
"""Time beyond the drain timeout after which a rank counts as unresponsive, seconds."""


def leave_command(timeout: DrainTimeoutOption = DRAIN_TIMEOUT) -> int:
    """Drain the ranks of this machine, which is about to shut down, at all their routers.

    The ranks and their groups get no new requests. Requests that are not finished in time are
    resumed in other groups when the ranks exit.

    Exit code 0 if all ranks have drained, 1 if not.
    """
    ranks = serving_ranks()
    if not ranks:
        print("no ranks are running on this machine")
        return 0
    request_leave(timeout)
    print(f"ranks to drain: {len(ranks)}", flush=True)
    deadline = time.monotonic() + timeout + _SLACK
    while left := serving_ranks():
        if time.monotonic() >= deadline:
            print(f"ranks not drained in time: {len(left)}")
            return 1
        time.sleep(_POLL_SECONDS)
    print("all ranks have drained")
    return 0
