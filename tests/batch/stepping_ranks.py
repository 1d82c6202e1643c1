"""Fake ranks of one group that step together, and whose steps take as long as those of real ranks.

    python -m tests.batch.stepping_ranks SETTINGS.yaml GROUP FIXED SEQUENCE TOKEN

A step takes FIXED seconds, plus SEQUENCE for each sequence and TOKEN for each prompt token on the
rank with the most. Prints READY when the ranks have started; serves until standard input ends.
"""

import asyncio
import sys
import time
from pathlib import Path

from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.settings import load_settings
from serving.telemetry.logs import configure_logs

READY = "READY"
_GAP = 0.0005
"""Time between two steps, in which requests begin and end, seconds."""


class GroupSteps:
    """The steps of a group, in which every running sequence of every rank gets one token."""

    def __init__(self, fixed, sequence, token):
        self._costs = fixed, sequence, token
        self._next = []
        """Rank and future of each sequence in the next step."""
        self._stepping = False
        self.steps, self.busy, self.latest = 0, 0.0, 0.0

    async def wait(self, rank):
        """Wait for the end of the next step."""
        ended = asyncio.get_running_loop().create_future()
        self._next.append((rank, ended))
        if not self._stepping:
            self._stepping = True
            asyncio.get_running_loop().call_later(_GAP, self._begin)
        await ended

    def _begin(self):
        sequences, self._next = self._next, []
        if not sequences:
            self._stepping = False
            return
        by_rank = {}
        for rank, _ in sequences:
            by_rank[rank] = by_rank.get(rank, 0) + 1
        prompts = max(rank.take_prompts() for rank in by_rank)
        fixed, sequence, token = self._costs
        seconds = fixed + sequence * max(by_rank.values()) + token * prompts
        self.latest = seconds + _GAP
        asyncio.get_running_loop().call_later(seconds, self._end, sequences)

    def _end(self, sequences):
        self.steps += 1
        self.busy += self.latest
        for _, ended in sequences:
            if not ended.done():
                ended.set_result(None)
        asyncio.get_running_loop().call_later(_GAP, self._begin)


class SteppingEngine(FakeEngine):
    """A rank of such a group."""

    def __init__(self, settings, steps, rank):
        super().__init__(settings, rank=rank)
        self._group = steps
        self._prompts = 0

    def take_prompts(self):
        """Return the prompt tokens of the requests that begin."""
        prompts, self._prompts = self._prompts, 0
        return prompts

    async def _run(self, request, params, state):
        prompt = request.prompt_token_ids
        self._prompts += len(prompt) - self._cache.cached_tokens(list(prompt))
        async for delta in super()._run(request, params, state):
            yield delta

    async def _step(self, state):
        del state
        await self._group.wait(self)
        self._last_step = self._clock.monotonic()

    async def load(self):
        load = await super().load()
        load.engine_steps_total = self._group.steps
        load.busy_seconds_total = self._group.busy
        load.step_seconds = self._group.latest
        return load


async def serve(settings, group, *costs):
    """Serve one group until standard input ends."""
    steps = GroupSteps(*costs)
    size = settings.group.data_parallel
    epoch = f"e{time.time_ns()}"
    servers = []
    for rank in range(size):
        engine = SteppingEngine(settings, steps, rank)
        await engine.start()
        identity = RankIdentity(group, epoch, rank, size, "127.0.0.1")
        servers.append(RankServer(engine, settings.link, identity))
        await servers[-1].start()
    print(READY, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(server.stop() for server in servers))


def main():
    """Run the command line."""
    _, file, group, *costs = sys.argv
    settings = load_settings(Path(file))
    configure_logs(settings.telemetry, process="rank")
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, group, *map(float, costs)))


if __name__ == "__main__":
    main()
