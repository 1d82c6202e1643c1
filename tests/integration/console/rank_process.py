"""A fake rank in a process that tests kill: ``python -m … SETTINGS GROUP SECONDS_PER_TOKEN``."""

import asyncio
import sys
from pathlib import Path

from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.settings import load_settings


async def serve(file: Path, group: str, delay: float) -> None:
    """Serve one group of one rank until standard input ends."""
    settings = load_settings(file)
    engine = FakeEngine(settings, token_delay=delay)
    await engine.start()
    identity = RankIdentity(group, f"epoch-{group}", 0, 1, "127.0.0.1")
    server = RankServer(engine, settings.link, identity)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
