"""The fleet of the overload test: a router and one fake rank of known capacity, in one process.

Prints a line of JSON (REST address, process id), then serves until its standard input ends.
"""

import asyncio
import json
import os
import sys

from serving.telemetry.logs import configure_logs
from tests.integration.edge.stand import stand_settings, standing

MAX_WAIT = 2.0
SLOTS = 8
TOKENS = 16
TOKEN_DELAY = 0.025
CAPACITY = SLOTS / (TOKENS * TOKEN_DELAY)
"""Requests/s."""


async def serve(keys_file: str) -> None:
    """Serve until the parent closes standard input."""
    settings = stand_settings(
        engine={"max_num_seqs": SLOTS},
        routing={"queue_allowance": 0},
        security={"keys_file": keys_file},
        admission={"max_wait": MAX_WAIT},
        telemetry={"log_level": "error", "log_format": "json"},
    )
    configure_logs(settings.telemetry, process="router")
    async with standing(settings, token_delay=TOKEN_DELAY) as stand:
        configure_logs(settings.telemetry, process="router")
        address = {"rest": stand.router.addresses.rest, "pid": os.getpid()}
        print("FLEET", json.dumps(address), flush=True)  # noqa: T201  for the parent
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
