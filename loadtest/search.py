"""A run that searches for the highest rate which meets the objective: its trials on a server."""

import argparse
import asyncio
import contextlib
import statistics
from collections import deque
from collections.abc import AsyncIterator, Sequence

from loadtest import slo
from loadtest.arrivals import RateProfile
from loadtest.record import Record
from loadtest.run import Run
from loadtest.stages import Stages
from loadtest.statistics import Quantiles
from loadtest.stolen import StolenTime

_LATE = 0.5
"""Of the tightest limit on a whole request's time: a generator that late disturbs a trial."""
_STOLEN = 0.03
"""Of the processor time: a host that gave so much of it to others disturbs a trial. With little
load most trials here have less than 0.02; with 0.07 and 0.1 rates missed that held otherwise."""
_DISTURBED_AGAIN = 3
"""How often a trial is tried."""
_BUSY = "Trials failed while the generator itself was late: the machine is too busy."
_TAKEN = "Trials failed while the host gave this machine's processors to others (steal)."
_FULL = 32
"""Streams of the closed loop that shows where a search should start."""


async def search(options: argparse.Namespace, stages: Stages) -> None:
    """Search; the answer, the trials and what to know about them are noted in the run."""
    trials = _Trials(options, stages)
    turns = _Turns(options.searches)
    found: list[slo.Found] = []
    try:
        start = options.start or await trials.first_rate()
        async with asyncio.TaskGroup() as group:
            made = [
                group.create_task(_one(trials, turns, start, number))
                for number in range(options.searches)
            ]
        found = [task.result() for task in made]
    except* _Ended:
        pass
    if found:
        _answer(stages.run, found)


async def _one(trials: "_Trials", turns: "_Turns", start: float, number: int) -> slo.Found:
    """Make one of the searches in turn."""
    options, run = trials.options, trials.run

    async def attempt(rate: float, pattern: int) -> slo.Tried:
        async with turns.turn(number):
            return await trials.attempt(rate, pattern, number)

    found = await slo.search(
        attempt,
        start=start,
        most=options.most,
        share=run.slo.share,
        settling=options.trials,
        made=run.trials,
        number=number + 1,
    )
    await turns.leave(number)
    return found


def _answer(run: Run, found: Sequence[slo.Found]) -> None:
    rates = [one.rate for one in found if one.rate is not None]
    if len(rates) == len(found):
        run.answer = statistics.geometric_mean(rates)
    if len(found) > 1:
        each = ", ".join("none" if one.rate is None else f"{one.rate:.3g}" for one in found)
        apart = f": {max(rates) / min(rates) - 1:.0%} apart" if run.answer else ""
        run.notes.append(f"{len(found)} searches in turn answered {each} requests/s{apart}.")
    if run.answer is not None and not all(one.bounded for one in found):
        run.notes.append("No rate failed: the highest one (--most) held.")
    for number, one in enumerate(found, 1):
        if one.halves is not None and one.moved:
            first, second = one.halves
            which = f" (search {number})" if len(found) > 1 else ""
            run.notes.append(
                f"The server changed meanwhile: {first:.3g} requests/s by the first half of "
                f"the settling trials, {second:.3g} by the second{which}."
            )


class _Turns:
    """Lets searches that go on side by side make their trials one at a time, round and round."""

    def __init__(self, count: int) -> None:
        self._order = deque(range(count))
        self._moved = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def turn(self, number: int) -> AsyncIterator[None]:
        """Wait for the turn of ``number``; the next one's begins when it is left."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._order[0] == number)
            # Held meanwhile, as only the one whose turn it is has anything to do.
            yield
            self._order.rotate(-1)
            self._moved.notify_all()

    async def leave(self, number: int) -> None:
        """Have no turns any more."""
        async with self._moved:
            self._order.remove(number)
            self._moved.notify_all()


class _Trials:
    """Tries rates."""

    def __init__(self, options: argparse.Namespace, stages: Stages) -> None:
        self.options = options
        self.run = stages.run
        self._stages = stages
        self._generator = stages.generator

    async def first_rate(self) -> float:
        """Return half of what a closed loop gets done: from far below the search takes long."""
        done = (await self._stages.closed(_FULL)).completed
        if self._generator.stopped:
            raise _Ended
        rate = done / 2 or 1.0
        print(f"  {_FULL} streams: {done:.4g} requests/s; the search starts at {rate:.4g}")
        return rate

    async def attempt(self, rate: float, pattern: int, search: int) -> slo.Tried:
        """Try a rate, again where it missed and the machine disturbed it."""
        which = f"search {search + 1}: " if self.options.searches > 1 else ""
        for _ in range(_DISTURBED_AGAIN):
            host = StolenTime()
            tried, late = await self._trial(rate, f"{search}/{pattern}" if search else f"{pattern}")
            stolen = host.share()
            met = tried.held and tried.share >= self.run.slo.share
            verdict, note = "held" if met else "missed", ""
            if not met and late:
                verdict, note = "missed, generator late", _BUSY
            elif not met and stolen > _STOLEN:
                verdict, note = f"missed, host took {stolen:.0%} of the processors", _TAKEN
            number = f" (settling {pattern} of {self.options.trials})" if pattern else ""
            print(f"  {which}{rate:.4g} requests/s: {tried.share:.2%} {verdict}{number}")
            if not note:
                return tried
        if note not in self.run.notes:
            self.run.notes.append(note)
        return tried

    async def _trial(self, rate: float, pattern: str) -> tuple[slo.Tried, bool]:
        """Return how the rate went, and if the generator was late."""
        if self._generator.stopped:
            raise _Ended
        options, objective = self.options, self.run.slo
        seconds = max(options.duration, options.warmup + options.trial_requests / rate)
        # A trial that cannot hold any more need not go on. Twice what is allowed, as the number
        # of requests that will come is itself by chance.
        most = 2 * (1 - objective.share) * rate * (seconds - options.warmup) + 1
        seen: list[Record] = []
        missed = 0

        def note(record: Record) -> None:
            nonlocal missed
            if record.phase == "measure" and record.error != "cancelled":
                seen.append(record)
                missed += not objective.met_by(record)
                if missed > most:
                    self._generator.halt()

        self._generator.listeners.append(note)
        try:
            profile = RateProfile(rate, rate, seconds)
            await self._stages.at_rate(profile, f"{rate:.4g} requests/s", f"search/{pattern}")
        finally:
            self._generator.listeners.remove(note)
        if self._generator.stopped:
            raise _Ended
        share = slo.attainment(seen, objective)
        if share is None:
            # By chance nobody came (one in 150 trials of five requests): that says nothing.
            return await self._trial(rate, f"{pattern}/again")
        lateness = Quantiles.of([record.sent - record.intended for record in seen]).p99
        return slo.Tried(share, held=missed <= most), lateness > _LATE * objective.tightest


class _Ended(Exception):
    """The run was stopped within a search."""
