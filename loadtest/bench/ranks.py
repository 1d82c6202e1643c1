"""Many fake ranks in one process, each with a link of its own to the router.

    python -m loadtest.bench.ranks SETTINGS.yaml RANKS

Prints READY when all have been dialled; serves until its input ends.
"""

import asyncio
import os
import sys
from pathlib import Path

from serving.engine.fake_engine import FakeEngine
from serving.engine.rank_server import RankIdentity, RankServer
from serving.settings import Settings, load_settings
from serving.telemetry.logs import configure_logs

DELAY_VARIABLE = "LOADTEST_TOKEN_DELAY"
"""Variable with the seconds from a request's token to its next; 0: as fast as it goes."""


async def serve(settings: Settings, count: int, delay: float) -> None:
    """Serve ``count`` ranks, in groups as large as the settings say."""
    size = settings.group.data_parallel
    servers = []
    for number in range(count):
        group, rank = divmod(number, size)
        engine = FakeEngine(settings, rank=rank, token_delay=delay)
        await engine.start()
        identity = RankIdentity(f"g{group}", "bench", rank, size, "127.0.0.1")
        server = RankServer(engine, settings.link, identity)
        await server.start()
        servers.append(server)
    print("READY", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(server.stop() for server in servers))


def main() -> None:
    """Read the arguments and serve."""
    settings = load_settings(Path(sys.argv[1]))
    configure_logs(settings.telemetry, process="rank")
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, int(sys.argv[2]), float(os.environ.get(DELAY_VARIABLE, "0"))))


if __name__ == "__main__":
    main()
