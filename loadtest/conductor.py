"""Puts a run together: asks the server who it is, runs the stages, keeps what came of it."""

import argparse
import asyncio
import contextlib
import itertools
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from loadtest.arrivals import RateProfile, arrivals, gaps
from loadtest.fleet_watch import FleetEvent, watch
from loadtest.generator import Generator
from loadtest.grpc_target import GrpcTarget
from loadtest.progress import Progress
from loadtest.record import Record
from loadtest.rest_target import RestTarget
from loadtest.run import Run, Stage
from loadtest.slo import Slo, Tried, attainment, search
from loadtest.statistics import Quantiles
from loadtest.target import Ask, Message, Style, Target, TargetError
from loadtest.trace import TRACE_BLOCK, Request, load_trace
from loadtest.workload import Calibration, Session, Synthetic, from_trace, text
from serving import errors
from serving.cli.access import access_from

INTERRUPTED = "interrupted"
_LOCAL = "127.0.0.1:8000"
_LATE = 0.5
"""Of the tightest limit on a whole request's time: a generator that late disturbs a trial."""
_DISTURBED_AGAIN = 3
"""How often a trial is tried."""
_BUSY = "Trials failed while the generator itself was late: the machine is too busy."
_FULL = 32
"""Streams of the closed loop that shows where a search should start."""
_PROBES = (8, 108)
"""Words of the two prompts from which the server's way of counting is learnt."""


async def conduct(options: argparse.Namespace, command: str, local: Path | None = None) -> Run:
    """Run what the options say; however it ends, what was seen so far is in the result.

    Args:
        options: see ``arguments``.
        command: how it was called, for people.
        local: state folder of this machine's own run, for its key and certificate.

    Raises:
        ServingError: it could not begin: no server, no such model, no trace.
    """
    trace = load_trace(options.trace) if getattr(options, "trace", None) else None
    elsewhere = options.url or options.grpc
    # The key that a local run left is for that run alone.
    access = access_from(
        options.api_key, options.ca_file, options.cert_file, None if elsewhere else local
    )
    url = options.url or f"http{'' if access.ca_file is None else 's'}://{_LOCAL}"
    async with contextlib.AsyncExitStack() as stack:
        rest = RestTarget(options.fleet_url or url, access)
        stack.push_async_callback(rest.close)
        target: Target = (
            GrpcTarget(options.grpc, access) if options.grpc else RestTarget(url, access)
        )
        stack.push_async_callback(target.close)
        where = options.grpc or url
        style = Style(
            await _model(target, where, options.model),
            options.endpoint,
            ignore_eos=options.ignore_eos,
            timeout=options.timeout,
        )
        calibration = await _calibration(target, where, style, options.tokens_per_word)
        conductor = _Conductor(options, target, style, calibration, where, command)
        watching = None
        if options.fleet_url or not options.grpc:
            watching = asyncio.create_task(conductor.watch(rest))
        showing = asyncio.create_task(conductor.progress.show())
        try:
            with _interruptible(conductor.generator):
                await conductor.go(trace)
        finally:
            for task in (watching, showing):
                if task is not None:
                    task.cancel()
                    await asyncio.wait({task})
        return conductor.result()


async def _model(target: Target, where: str, wanted: str | None) -> str:
    """Return the id of the model to ask for.

    Raises:
        ServingError: nobody is there, or the model is not.
    """
    try:
        served = await target.models()
    except TargetError as error:
        if error.kind in {"connect", "timeout"}:
            raise errors.NotReady(f"no server to load: {error}") from error
        raise errors.NotReady(f"the server does not say what it serves: {error}") from error
    if wanted is None and len(served) == 1:
        return served[0]
    if wanted in served and wanted is not None:
        return wanted
    names = ", ".join(served) or "nothing"
    if wanted is None:
        raise errors.InvalidRequest(f"which model? --model; {where} serves: {names}")
    raise errors.ModelNotFound(f"{where} has no model {wanted}; it serves: {names}")


async def _calibration(
    target: Target, where: str, style: Style, per_word: float | None
) -> Calibration:
    """Learn how the server counts the tokens of our texts, which also sees that it answers.

    Raises:
        EngineError: it does not answer.
    """
    if per_word is not None:
        return Calibration(per_word)
    counted = []
    for words in _PROBES:
        ask = Ask((Message("user", text(f"probe {words}", words)),), 1, "load-probe")
        tokens = 0
        try:
            async with contextlib.aclosing(target.send(ask, style)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    tokens = piece.usage.prompt_tokens if piece.usage else tokens
        except TargetError as error:
            raise errors.EngineError(f"{where} lists {style.model}, but: {error}") from error
        counted.append((words, tokens))
    short, long = counted
    return Calibration.of(short, long)


class _Conductor:
    """The stages of one run."""

    def __init__(
        self,
        options: argparse.Namespace,
        target: Target,
        style: Style,
        calibration: Calibration,
        where: str,
        command: str,
    ) -> None:
        self.options = options
        self.calibration = calibration
        self.generator = Generator(target, style, options.stop_after_failures)
        self.progress = Progress(self.generator, sys.stderr)
        slo = Slo(
            _seconds(options.slo_ttft_ms),
            _seconds(options.slo_itl_ms),
            _seconds(options.slo_latency_ms),
            options.slo_share,
        )
        self.run = Run(where, style.model, command, time.time(), slo, self.generator.records)
        self.generator.begin()

    def result(self) -> Run:
        """Return the run as far as it got."""
        self.run.stopped = self.generator.stopped
        return self.run

    async def watch(self, rest: RestTarget) -> None:
        """Note what happens to the fleet."""

        def note(event: FleetEvent) -> None:
            self.run.events.append(event)

        await watch(rest, lambda: self.generator.now, note)

    async def go(self, trace: list[Request] | None) -> None:
        """Run all stages."""
        options = self.options
        if options.command == "search":
            await self._search()
        elif trace is not None:
            await self._replay(trace)
        elif options.ramp:
            start, end = options.ramp
            profile = RateProfile(start, end, options.duration)
            await self._at_rate(profile, f"{start:g} to {end:g} requests/s")
        else:
            for rate in options.rate or ():
                if not self.generator.stopped:
                    await self._at_rate(
                        RateProfile(rate, rate, options.duration), f"{rate:g} requests/s"
                    )
            for streams in options.concurrency or ():
                if not self.generator.stopped:
                    await self._closed(streams)

    async def _at_rate(self, profile: RateProfile, label: str, pattern: str = "") -> None:
        """Send at a rate; equal seeds and patterns arrive alike, by default every stage its own."""
        pattern = pattern or str(len(self.run.stages))
        rng = random.Random(f"{self.options.seed}/{pattern}")  # noqa: S311  no secret
        due = arrivals(profile, gaps(self.options.arrivals, self.options.burstiness, rng))
        schedule = zip(due, self._sessions(), strict=False)
        shard, count = getattr(self.options, "shard", (0, 1))
        await self._open(
            itertools.islice(schedule, shard, None, count), label, profile.mean, profile.duration
        )

    async def _replay(self, trace: list[Request]) -> None:
        options = self.options
        scaled = [
            request.scaled(
                options.trace_block,
                longest=options.max_prompt_tokens,
                most_output=options.max_output_tokens,
            )
            for request in trace
        ]
        length = (trace[-1].at - trace[0].at) / options.speed
        schedule = from_trace(
            scaled, self.calibration, block=options.trace_block, speed=options.speed
        )
        shard, count = options.shard
        name = f"{options.trace.name} at {options.speed:g}x"
        if options.trace_block != TRACE_BLOCK:
            name += f", {options.trace_block / TRACE_BLOCK:.3g} of its lengths"
        # The last request is due when the trace ends: it belongs to it.
        seconds = min(options.duration, length + 1e-6)
        rate = len(trace) / max(length, 1e-6)
        await self._open(itertools.islice(schedule, shard, None, count), name, rate, seconds)

    async def _open(
        self, schedule: Iterator[tuple[float, Session]], label: str, load: float, seconds: float
    ) -> None:
        warmup = min(self.options.warmup, seconds / 2)
        stage = self._new_stage(label, load, "requests/s", warmup, seconds)
        await self.generator.open_loop(schedule, stage=stage.index, warmup=warmup, until=seconds)
        self._end_stage(stage)

    async def _closed(self, streams: int) -> None:
        warmup = min(self.options.warmup, self.options.duration / 2)
        stage = self._new_stage(
            f"{streams} streams", streams, "streams", warmup, self.options.duration
        )
        await self.generator.closed_loop(
            self._sessions(),
            streams,
            stage=stage.index,
            warmup=warmup,
            until=self.options.duration,
        )
        self._end_stage(stage)

    async def _search(self) -> None:
        with contextlib.suppress(_Ended):
            found = await search(
                self._attempt,
                start=self.options.start or await self._first_rate(),
                most=self.options.most,
                share=self.run.slo.share,
                settling=self.options.trials,
                made=self.run.trials,
            )
            self.run.answer = found.rate
            if found.rate is not None and not found.bounded:
                self.run.notes.append("No rate failed: the highest one (--most) held.")
            if found.halves is not None and found.moved:
                first, second = found.halves
                self.run.notes.append(
                    f"The server changed meanwhile: {first:.3g} requests/s by the first half of "
                    f"the settling trials, {second:.3g} by the second."
                )

    async def _first_rate(self) -> float:
        """Return half of what a closed loop gets done: from far below the search takes long."""
        await self._closed(_FULL)
        if self.generator.stopped:
            raise _Ended
        done = self.run.summary(self.run.stages[-1]).completed
        rate = done / 2 or 1.0
        print(f"  {_FULL} streams: {done:.4g} requests/s; the search starts at {rate:.4g}")
        return rate

    async def _attempt(self, rate: float, pattern: int) -> Tried:
        """Try a rate, again where the machine disturbed it."""
        for _ in range(_DISTURBED_AGAIN):
            tried, late = await self._trial(rate, pattern)
            met = tried.held and tried.share >= self.run.slo.share
            verdict = "held" if met else "missed, generator late" if late else "missed"
            number = f" (settling {pattern} of {self.options.trials})" if pattern else ""
            print(f"  {rate:.4g} requests/s: {tried.share:.2%} {verdict}{number}")
            if met or not late:
                return tried
        if _BUSY not in self.run.notes:
            self.run.notes.append(_BUSY)
        return tried

    async def _trial(self, rate: float, pattern: int) -> tuple[Tried, bool]:
        """Return how the rate went, and if the generator was late."""
        if self.generator.stopped:
            raise _Ended
        options, slo = self.options, self.run.slo
        seconds = max(options.duration, options.warmup + options.trial_requests / rate)
        # A trial that cannot hold any more need not go on. Twice what is allowed, as the number
        # of requests that will come is itself by chance.
        most = 2 * (1 - slo.share) * rate * (seconds - options.warmup) + 1
        seen: list[Record] = []
        missed = 0

        def note(record: Record) -> None:
            nonlocal missed
            if record.phase == "measure" and record.error != "cancelled":
                seen.append(record)
                missed += not slo.met_by(record)
                if missed > most:
                    self.generator.halt()

        self.generator.listeners.append(note)
        try:
            profile = RateProfile(rate, rate, seconds)
            await self._at_rate(profile, f"{rate:.4g} requests/s", f"search/{pattern}")
        finally:
            self.generator.listeners.remove(note)
        if self.generator.stopped:
            raise _Ended
        share = attainment(seen, slo) or 0.0
        lateness = Quantiles.of([record.sent - record.intended for record in seen]).p99
        return Tried(share, held=missed <= most), lateness > _LATE * slo.tightest

    def _new_stage(
        self, label: str, load: float, unit: str, warmup: float, seconds: float
    ) -> Stage:
        stage = Stage(len(self.run.stages), label, load, unit, self.generator.now, warmup, seconds)
        self.run.stages.append(stage)
        self.progress.stage = label
        return stage

    def _end_stage(self, stage: Stage) -> None:
        """Note how long it really was: it may have ended early."""
        seconds = min(stage.seconds, self.generator.now - stage.began)
        self.run.stages[stage.index] = replace(
            stage, seconds=seconds, warmup=min(stage.warmup, seconds)
        )

    def _sessions(self) -> Iterator[Session]:
        options = self.options
        # Each stage has its own texts: a prefix cache must not know them from the one before.
        seed = options.seed * 100_003 + len(self.run.stages)
        return Synthetic(
            options.prompt_tokens,
            options.output_tokens,
            options.turns,
            options.think,
            options.shared_tokens,
            seed,
        ).sessions(self.calibration)


class _Ended(Exception):
    """The run was stopped within a search."""


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@contextlib.contextmanager
def _interruptible(generator: Generator) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the run with a report; a second one ends the process."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        generator.stop(INTERRUPTED)
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
