"""Interactive requests and a batch on one simulated group, in virtual time.

    python -m tests.batch.simulation

The real scheduler of lines decides; the group is a model whose steps have a given duration. Nothing
depends on the machine, so that the result is the same each time. Prints latencies of interactive
requests at 60 % of the capacity, alone and beside a batch that never runs out of lines.
"""

import asyncio
import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from serving.batch.scheduler import LineScheduler, ModelSource
from serving.batch.step_model import StepTime
from serving.request_context import RequestContext
from serving.routing.snapshot import RankLoad
from serving.settings import BatchSettings
from serving.telemetry.model_counters import ModelCounters
from tests.batch.interference import quantile
from tests.support.fleets import fleet, group, rank
from tests.support.virtual_time import VirtualTimeLoop

RANKS, SEQUENCES = 2, 64
PROMPT, TOKENS = 16, (16, 48)
"""Tokens of a prompt, and smallest and largest number of generated tokens."""
_MEAN_TOKENS = sum(TOKENS) / 2
_REPORT = 0.5
"""Interval of the ranks' reports, seconds."""
_WARM_UP = 60.0
"""Time that is not measured, seconds."""
_LINES = 512
"""Lines that a gateway sends or a router prepares at a time."""
ALONE, HEADROOM, CAP, UNPROTECTED = "no batch", "headroom", "fixed number", "no protection"


@dataclass(eq=False)
class Sequence:
    """A request on a rank."""

    rank: int
    left: int
    """Tokens to generate."""
    prompt: int
    token: Callable[[], None]
    """Called for each token."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    generated: int = 0


class SimulatedGroup:
    """Ranks that step together; each sequence gets one token per step."""

    def __init__(self, times: StepTime) -> None:
        self._times = times
        self._waiting: list[deque[Sequence]] = [deque() for _ in range(RANKS)]
        self._running: list[list[Sequence]] = [[] for _ in range(RANKS)]
        self._woken = asyncio.Event()
        self._totals = [RankLoad() for _ in range(RANKS)]
        self._reported = list(self._totals)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it starts with the next step."""
        self._waiting[sequence.rank].append(sequence)
        self._woken.set()

    def abort(self, sequence: Sequence) -> None:
        """Remove a sequence."""
        for place in (self._waiting[sequence.rank], self._running[sequence.rank]):
            if sequence in place:
                place.remove(sequence)

    def least_loaded(self) -> int:
        """Return the rank with the fewest sequences."""
        return min(range(RANKS), key=self._count)

    def snapshot(self):
        """Return the group as a router sees it."""
        ranks = (rank(each, inflight=self._count(each)) for each in range(RANKS))
        return fleet(
            group(
                *(
                    replace(each, max_num_seqs=SEQUENCES, load=self._reported[each.rank])
                    for each in ranks
                )
            )
        )

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            if not any(self._waiting) and not any(self._running):
                self._woken.clear()
                await self._woken.wait()
            prompts = [self._start(each) for each in range(RANKS)]
            stepping = [list(running) for running in self._running]
            most = max(map(len, stepping))
            seconds = self._times.seconds(most) + self._times.token * max(prompts)
            await asyncio.sleep(seconds)
            for each in range(RANKS):
                self._end_step(each, stepping[each], prompts[each], seconds)

    async def report(self) -> None:
        """Report until cancelled."""
        while True:
            await asyncio.sleep(_REPORT)
            for each, running in enumerate(self._running):
                full = len(running) >= SEQUENCES
                self._reported[each] = replace(
                    self._totals[each],
                    running_requests=len(running),
                    waiting_requests=len(self._waiting[each]) if full else 0,
                )

    def _count(self, each: int) -> int:
        return len(self._waiting[each]) + len(self._running[each])

    def _start(self, each: int) -> int:
        """Start waiting sequences; return the tokens of their prompts."""
        waiting, running, prompts = self._waiting[each], self._running[each], 0
        while waiting and len(running) < SEQUENCES:
            running.append(waiting.popleft())
            prompts += running[-1].prompt
        return prompts

    def _end_step(self, each: int, stepped: list[Sequence], prompts: int, seconds: float) -> None:
        remaining = set(self._running[each])
        tokens = 0
        for sequence in stepped:
            if sequence not in remaining:
                continue
            tokens += 1
            sequence.left -= 1
            sequence.generated += 1
            sequence.token()
            if not sequence.left:
                self._running[each].remove(sequence)
                sequence.ended.set()
        old = self._totals[each]
        self._totals[each] = replace(
            old,
            engine_steps_total=old.engine_steps_total + 1,
            generated_tokens_total=old.generated_tokens_total + tokens,
            prompt_tokens_total=old.prompt_tokens_total + prompts,
            busy_seconds_total=old.busy_seconds_total + seconds,
        )


@dataclass
class Outcome:
    """Latencies of interactive requests, seconds, and tokens per second."""

    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    tokens: float = 0.0
    line_tokens: float = 0.0

    def row(self) -> list[float]:
        """Return p50 and p99 of both latencies in milliseconds, and both rates."""
        latencies = (quantile(each, part) for each in (self.ttft, self.itl) for part in (0.5, 0.99))
        return [*(1000 * each for each in latencies), self.tokens, self.line_tokens]


class Simulation:
    """One run."""

    def __init__(
        self, times: StepTime, mode: str, seconds: float, seed: int, settings: BatchSettings
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._group = SimulatedGroup(times)
        source = ModelSource(self._group.snapshot, settings, ModelCounters())
        self._scheduler = LineScheduler(source, lambda _: 1.0)
        self._mode = mode
        self._seconds = seconds
        self._seed = seed
        self._outcome = Outcome()

    async def run(self, rate: float, cap: int) -> Outcome:
        """Run ``rate`` interactive requests per second and the lines of the mode."""
        lines = {ALONE: 0, HEADROOM: _LINES, CAP: cap, UNPROTECTED: _LINES}[self._mode]
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(each)
                for each in (
                    self._group.run(),
                    self._group.report(),
                    *(self._line(number) for number in range(lines)),
                    self._arrivals(rate, tasks),
                )
            ]
            await asyncio.sleep(_WARM_UP + self._seconds)
            for task in running:
                task.cancel()
            self._scheduler.stop()
            raise _Ended
        raise AssertionError

    async def _arrivals(self, rate: float, tasks: asyncio.TaskGroup) -> None:
        chance = random.Random(self._seed)
        while rate:
            await asyncio.sleep(chance.expovariate(rate))
            tasks.create_task(self._request(chance.randint(*TOKENS)))

    def _measured(self) -> bool:
        return self._loop.time() >= _WARM_UP

    async def _request(self, tokens: int) -> None:
        last = self._loop.time()

        def token() -> None:
            nonlocal last
            now = self._loop.time()
            if self._measured():
                into = self._outcome.itl if sequence.generated > 1 else self._outcome.ttft
                into.append(now - last)
                self._outcome.tokens += 1 / self._seconds
            last = now

        where = self._group.least_loaded()
        sequence = Sequence(where, tokens, PROMPT, token)
        self._group.add(sequence)
        self._scheduler.arrived(rank(where).rank_id)
        await sequence.ended.wait()

    async def _line(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/{number}")
        while True:
            context, left, generated = RequestContext(), chance.randint(*TOKENS), 0
            while left:
                if self._mode == HEADROOM:
                    await self._scheduler.turn(context, PROMPT + left, PROMPT)
                # A line that was preempted computes its tokens again.
                where = self._group.least_loaded()
                sequence = Sequence(where, left, PROMPT + generated, self._count_line_token)
                self._group.add(sequence)
                leave = None
                if self._mode == HEADROOM:
                    leave = self._scheduler.placed(rank(where).rank_id, sequence.ended.set)
                await sequence.ended.wait()
                if leave is not None:
                    leave()
                if sequence.left:
                    self._group.abort(sequence)
                    context.record.resumes += 1
                generated += sequence.generated
                left = sequence.left

    def _count_line_token(self) -> None:
        if self._measured():
            self._outcome.line_tokens += 1 / self._seconds


class _Ended(Exception):
    """Ends the tasks of a simulation."""


def simulate(
    times: StepTime,
    mode: str,
    *,
    rate: float = 0.0,
    seconds: float = 120.0,
    seed: int = 1,
    cap: int = 32,
    settings: BatchSettings | None = None,
) -> Outcome:
    """Simulate ``seconds`` and return what they measured.

    Args:
        times: Duration of the group's steps.
        mode: One of the four modes.
        rate: Interactive requests per second.
        seconds: Measured time.
        seed: Seed of arrivals and lengths.
        cap: Lines at a time in the mode ``CAP``.
        settings: Settings of batches; by default the defaults.
    """
    loop = VirtualTimeLoop()

    async def run() -> Outcome:
        simulation = Simulation(times, mode, seconds, seed, settings or BatchSettings())
        try:
            return await simulation.run(rate, cap)
        except* _Ended:
            pass
        return simulation._outcome

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def compare(growth: float, load: float = 0.6, **options) -> dict[str, Outcome]:
    """Simulate all modes; the capacity is the rate of lines in ``capacity``.

    Args:
        growth: How much longer the steps of a full rank are than those of an empty one, as a
            fraction.
        load: Interactive load as a fraction of the capacity.
        options: Further arguments of ``simulate``.
    """
    fixed = 0.020
    each = fixed * growth / SEQUENCES
    times = StepTime(fixed, each, each / 3)
    capacity = simulate(times, UNPROTECTED, seconds=30.0)
    rate = load * capacity.line_tokens / _MEAN_TOKENS
    modes = (ALONE, HEADROOM, CAP, UNPROTECTED)
    return {"capacity": capacity} | {
        mode: simulate(times, mode, rate=rate, **options) for mode in modes
    }


def main() -> None:
    """Print the results for nearly flat steps and for steeper ones."""
    names = ("TTFT p50", "p99 ms", "ITL p50", "p99 ms", "tokens/s", "batch tokens/s", "used")
    for growth in (0.2, 0.5, 2.0):
        found = compare(growth)
        capacity = found.pop("capacity").line_tokens
        print(f"steps of a full rank take {1 + growth:g} times as long as those of an empty one")
        print(f"{'':16}" + "".join(f"{name:>16}" for name in names))
        alone = found[ALONE].row()
        for mode, outcome in found.items():
            row = outcome.row()
            used = row[5] / (capacity - alone[4])
            print(f"{mode:16}" + "".join(f"{each:16.1f}" for each in row) + f"{used:16.0%}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
