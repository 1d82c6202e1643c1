"""Fake ranks in one process, each with a separate link to the router.

    python -m loadtest.bench.ranks SETTINGS.yaml RANKS DELAY scattered|stepped [PREFIX]

Prints READY when all have started; serves until standard input ends.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from typing_extensions import override

from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.settings import Settings, load_settings
from serving.telemetry.logs import configure_logs

STEPPED, SCATTERED = "stepped", "scattered"


class SteppedEngine(FakeEngine):
    """Generates the next token of all requests in one step, as real engines do.

    The plain fake engine has a timer for each request.
    """

    _step_ends: asyncio.Event | None = None

    @override
    async def _step(self, request: Any) -> None:
        if self._step_ends is None:
            self._step_ends = asyncio.Event()
            asyncio.get_running_loop().call_later(self._token_delay, self._end_step)
        await self._step_ends.wait()

    def _end_step(self) -> None:
        ends, self._step_ends = self._step_ends, None
        assert ends is not None
        ends.set()
        self._last_step = self._clock.monotonic()
        self._steps += 1


async def serve(settings: Settings, count: int, delay: float, kind: str, prefix: str = "g") -> None:
    """Serve ranks in groups of ``group.data_parallel``.

    Args:
        settings: Settings of the ranks.
        count: Number of ranks.
        delay: Seconds between two tokens of a request; 0: as fast as possible.
        kind: ``STEPPED`` or ``SCATTERED``.
        prefix: Beginning of the names of the groups.
    """
    make = SteppedEngine if kind == STEPPED else FakeEngine
    size = settings.group.data_parallel
    servers = []
    for number in range(count):
        group, rank = divmod(number, size)
        engine = make(settings, rank=rank, token_delay=delay)
        await engine.start()
        identity = RankIdentity(f"{prefix}{group}", "bench", rank, size, "127.0.0.1")
        server = RankServer(engine, settings.link, identity)
        await server.start()
        servers.append(server)
    print("READY", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(server.stop() for server in servers))


def main() -> None:
    """Run the command line."""
    settings = load_settings(Path(sys.argv[1]))
    configure_logs(settings.telemetry, process="rank")
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))


if __name__ == "__main__":
    main()
