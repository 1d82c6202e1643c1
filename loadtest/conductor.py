"""Puts a run together: asks the server who it is, runs the stages, keeps what came of it."""

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from loadtest.arrivals import RateProfile
from loadtest.fleet_watch import FleetEvent, watch
from loadtest.generator import Generator
from loadtest.grpc_target import GrpcTarget
from loadtest.progress import Progress
from loadtest.rest_target import RestTarget
from loadtest.run import Run
from loadtest.search import search
from loadtest.slo import Slo
from loadtest.stages import Stages
from loadtest.target import Ask, Message, Style, Target, TargetError
from loadtest.trace import Request, load_trace
from loadtest.workload import Calibration, text
from serving import errors
from serving.client.credentials import access_from
from serving.flag_values import MOST_SECONDS, FlagError, refusal

INTERRUPTED = "interrupted"
_LOCAL = "127.0.0.1:8000"
_PROBES = (8, 108)
"""Words of the two prompts from which the server's way of counting is learnt."""


async def conduct(options: argparse.Namespace, command: str, local: Path | None = None) -> Run:
    """Run what the options say; however it ends, what was seen so far is in the result.

    Args:
        options: see ``arguments``.
        command: how it was called, for people.
        local: state folder of this machine's own run, for its key and certificate.

    Raises:
        FlagError: no such model, no trace, no certificate.
        ServingError: it could not begin: no server.
    """
    trace = _trace(getattr(options, "trace", None))
    elsewhere = options.url or options.grpc
    # The key that a local run left is for that run alone.
    access = access_from(
        options.api_key,
        _name(options.ca_file),
        _name(options.cert_file),
        None if elsewhere else local,
    )
    url = options.url or f"http{'' if access.ca_file is None else 's'}://{_LOCAL}"
    async with contextlib.AsyncExitStack() as stack:
        try:
            rest = RestTarget(options.fleet_url or url, access)
            stack.push_async_callback(rest.close)
            target: Target = (
                GrpcTarget(options.grpc, access) if options.grpc else RestTarget(url, access)
            )
            stack.push_async_callback(target.close)
        except errors.SettingsError as error:
            if options.ca_file is None and options.cert_file is None:
                raise
            raise FlagError(str(error)) from error
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


def _trace(path: Path | None) -> list[Request] | None:
    """Return the requests of ``--trace``.

    Raises:
        FlagError: the file holds something else.
    """
    try:
        return None if path is None else load_trace(path)
    except errors.InvalidRequest as error:
        raise FlagError(refusal("--trace", str(path), error)) from error


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


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
        raise FlagError(f"--model is missing: {where} serves several models: {names}")
    raise FlagError(refusal("--model", wanted, f"{where} serves: {names}"))


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
    """One run, from what the options say."""

    def __init__(
        self,
        options: argparse.Namespace,
        target: Target,
        style: Style,
        calibration: Calibration,
        where: str,
        command: str,
    ) -> None:
        self._options = options
        self.generator = Generator(target, style, options.stop_after_failures)
        self.progress = Progress(self.generator, sys.stderr)
        slo = Slo(
            _seconds(options.slo_ttft_ms),
            _seconds(options.slo_itl_ms),
            _seconds(options.slo_latency_ms),
            options.slo_share,
        )
        self._run = Run(where, style.model, command, time.time(), slo, self.generator.records)
        self._stages = Stages(options, self.generator, self.progress, self._run, calibration)
        self.generator.begin()

    def result(self) -> Run:
        """Return the run as far as it got."""
        self._run.stopped = self.generator.stopped
        return self._run

    async def watch(self, rest: RestTarget) -> None:
        """Note what happens to the fleet."""

        def note(event: FleetEvent) -> None:
            self._run.events.append(event)

        await watch(rest, lambda: self.generator.now, note)

    async def go(self, trace: list[Request] | None) -> None:
        """Run all stages."""
        options, stages = self._options, self._stages
        if options.command == "search":
            await search(options, stages)
        elif trace is not None:
            await stages.replay(trace)
        elif options.ramp:
            start, end = options.ramp
            profile = RateProfile(start, end, options.duration)
            await stages.at_rate(profile, f"{start:g} to {end:g} requests/s")
        else:
            for rate in options.rate or ():
                if not self.generator.stopped:
                    seconds = MOST_SECONDS if options.requests else options.duration
                    profile = RateProfile(rate, rate, seconds)
                    await stages.at_rate(profile, f"{rate:g} requests/s")
            for streams in options.concurrency or ():
                if not self.generator.stopped:
                    await stages.closed(streams)


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
