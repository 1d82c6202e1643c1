"""``load search``: trials on a server to find the highest rate that meets the objective."""

import argparse
import asyncio
import contextlib
import statistics
from collections import deque
from collections.abc import AsyncIterator, Sequence

from loadtest import slo
from loadtest.arrivals import RateProfile
from loadtest.cpu_steal import CpuSteal
from loadtest.record import Record
from loadtest.run import Run
from loadtest.stages import Stages
from loadtest.statistics import Quantiles

_LATE = 0.5
"""Lateness of the generator above which a trial counts as disturbed, as a share of the tightest
limit."""
_STOLEN = 0.03
"""Share of stolen CPU time above which a trial counts as disturbed. On a quiet host, most trials
have less than 0.02; at 0.07 to 0.1, trials failed at rates that held otherwise."""
_MAX_ATTEMPTS = 3
"""Maximum number of attempts of a disturbed trial."""
_LATE_NOTE = "Trials failed while the load generator was late: this machine is too busy."
_STEAL_NOTE = "Trials failed while other virtual machines used this machine's CPU time (steal)."
_START_STREAMS = 32
"""Number of streams of the closed loop that determines where a search starts."""


async def search(options: argparse.Namespace, stages: Stages) -> None:
    """Run the searches; store their result, trials and notes in the run."""
    trials = Trials(options, stages)
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


async def _one(trials: "Trials", turns: "_Turns", start: float, number: int) -> slo.Found:
    """Run one search; its trials alternate with those of the others."""
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
        apart = f"; spread {max(rates) / min(rates) - 1:.0%}" if run.answer else ""
        run.notes.append(
            f"Results of {len(found)} interleaved searches, requests/s: {each}{apart}."
        )
    if run.answer is not None and not all(one.bounded for one in found):
        run.notes.append("No rate missed the objective, not even the highest (--most).")
    for number, one in enumerate(found, 1):
        if one.halves is not None and one.moved:
            first, second = one.halves
            which = f" (search {number})" if len(found) > 1 else ""
            run.notes.append(
                f"The server changed during the search: {first:.3g} requests/s from the first "
                f"half of the settling trials, {second:.3g} from the second{which}."
            )


class _Turns:
    """Lets concurrent searches make their trials one at a time, round-robin."""

    def __init__(self, count: int) -> None:
        self._order = deque(range(count))
        self._moved = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def turn(self, number: int) -> AsyncIterator[None]:
        """Wait for the turn of search ``number``; on exit, the next search gets its turn."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._order[0] == number)
            # Keep the lock: only the search whose turn it is has work to do.
            yield
            self._order.rotate(-1)
            self._moved.notify_all()

    async def leave(self, number: int) -> None:
        """Remove search ``number`` from the rotation."""
        async with self._moved:
            self._order.remove(number)
            self._moved.notify_all()


class Trials:
    """Tries rates on the server."""

    def __init__(self, options: argparse.Namespace, stages: Stages) -> None:
        self.options = options
        self.run = stages.run
        self._stages = stages
        self._generator = stages.generator

    async def first_rate(self) -> float:
        """Return half the throughput of a closed loop; starting much lower would take longer."""
        done = (await self._stages.closed(_START_STREAMS)).completed
        if self._generator.stopped:
            raise _Ended
        rate = done / 2 or 1.0
        print(f"  {_START_STREAMS} streams: {done:.4g} requests/s; the search starts at {rate:.4g}")
        return rate

    async def attempt(self, rate: float, pattern: int, search: int) -> slo.Tried:
        """Try a rate; repeat a trial that missed while the machine disturbed it."""
        which = f"search {search + 1}: " if self.options.searches > 1 else ""
        for _ in range(_MAX_ATTEMPTS):
            host = CpuSteal()
            tried, late = await self.run_trial(
                rate, f"{search}/{pattern}" if search else f"{pattern}"
            )
            stolen = host.share()
            met = tried.held and tried.share >= self.run.slo.share
            verdict, note = "met" if met else "missed", ""
            if not met and late:
                verdict, note = "missed, generator late", _LATE_NOTE
            elif not met and stolen > _STOLEN:
                verdict, note = f"missed, CPU steal {stolen:.0%}", _STEAL_NOTE
            number = f" (settling {pattern} of {self.options.trials})" if pattern else ""
            print(f"  {which}{rate:.4g} requests/s: {tried.share:.2%} {verdict}{number}")
            if not note:
                return tried
        if note not in self.run.notes:
            self.run.notes.append(note)
        return tried

    async def run_trial(self, rate: float, pattern: str) -> tuple[slo.Tried, bool]:
        """Return the outcome of a trial, and whether the generator was late."""
        if self._generator.stopped:
            raise _Ended
        options, objective = self.options, self.run.slo
        seconds = max(options.duration, options.warmup + options.trial_requests / rate)
        # End a trial that can no longer hold: at twice the allowed misses, because the number of
        # requests is random.
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
            # By chance, no request was due (1 in 150 trials of 5 requests): try again.
            return await self.run_trial(rate, f"{pattern}/again")
        lateness = Quantiles.of([record.sent - record.intended for record in seen]).p99
        return slo.Tried(share, held=missed <= most), lateness > _LATE * objective.tightest


class _Ended(Exception):
    """The run was stopped during a search."""
