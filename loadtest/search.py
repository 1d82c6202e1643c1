"""A run that searches for the highest rate which meets the objective: its trials on a server."""

import argparse
import contextlib

from loadtest import slo
from loadtest.arrivals import RateProfile
from loadtest.record import Record
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
    run = stages.run
    trials = _Trials(options, stages)
    with contextlib.suppress(_Ended):
        found = await slo.search(
            trials.attempt,
            start=options.start or await trials.first_rate(),
            most=options.most,
            share=run.slo.share,
            settling=options.trials,
            made=run.trials,
        )
        run.answer = found.rate
        if found.rate is not None and not found.bounded:
            run.notes.append("No rate failed: the highest one (--most) held.")
        if found.halves is not None and found.moved:
            first, second = found.halves
            run.notes.append(
                f"The server changed meanwhile: {first:.3g} requests/s by the first half of "
                f"the settling trials, {second:.3g} by the second."
            )


class _Trials:
    """Tries rates."""

    def __init__(self, options: argparse.Namespace, stages: Stages) -> None:
        self._options = options
        self._stages = stages
        self._generator = stages.generator
        self._run = stages.run

    async def first_rate(self) -> float:
        """Return half of what a closed loop gets done: from far below the search takes long."""
        done = (await self._stages.closed(_FULL)).completed
        if self._generator.stopped:
            raise _Ended
        rate = done / 2 or 1.0
        print(f"  {_FULL} streams: {done:.4g} requests/s; the search starts at {rate:.4g}")
        return rate

    async def attempt(self, rate: float, pattern: int) -> slo.Tried:
        """Try a rate, again where it missed and the machine disturbed it."""
        for _ in range(_DISTURBED_AGAIN):
            host = StolenTime()
            tried, late = await self._trial(rate, pattern)
            stolen = host.share()
            met = tried.held and tried.share >= self._run.slo.share
            verdict, note = "held" if met else "missed", ""
            if not met and late:
                verdict, note = "missed, generator late", _BUSY
            elif not met and stolen > _STOLEN:
                verdict, note = f"missed, host took {stolen:.0%} of the processors", _TAKEN
            number = f" (settling {pattern} of {self._options.trials})" if pattern else ""
            print(f"  {rate:.4g} requests/s: {tried.share:.2%} {verdict}{number}")
            if not note:
                return tried
        if note not in self._run.notes:
            self._run.notes.append(note)
        return tried

    async def _trial(self, rate: float, pattern: int) -> tuple[slo.Tried, bool]:
        """Return how the rate went, and if the generator was late."""
        if self._generator.stopped:
            raise _Ended
        options, objective = self._options, self._run.slo
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
        share = slo.attainment(seen, objective) or 0.0
        lateness = Quantiles.of([record.sent - record.intended for record in seen]).p99
        return slo.Tried(share, held=missed <= most), lateness > _LATE * objective.tightest


class _Ended(Exception):
    """The run was stopped within a search."""
