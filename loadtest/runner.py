"""One run: finds the model, runs the stages, and stores the results."""

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
from loadtest.progress import Progress
from loadtest.run import Run
from loadtest.search import search
from loadtest.slo import Slo
from loadtest.stages import Stages
from loadtest.trace import Request, load_trace
from loadtest.workload import Calibration, text
from serving.client import errors
from serving.client.aio import AsyncClient, AsyncGrpcClient, AsyncRestClient
from serving.client.chat import GenerateOptions, GenerateRequest, Message
from serving.client.credentials import access_from
from serving.client.flags import MAX_SECONDS, FlagError, refusal

INTERRUPTED = "interrupted"
_LOCAL = "127.0.0.1:8000"
_PROBES = (8, 108)
"""Word counts of the two prompts that determine the server's number of tokens per word."""


async def run_load(options: argparse.Namespace, command: str, local: Path | None = None) -> Run:
    """Run the load of the command line; a run that ends early returns its partial results.

    Args:
        options: See ``arguments``.
        command: The command line, for the report.
        local: State folder of the local run, whose credentials are used if no address is given.

    Raises:
        FlagError: The model, the trace or the certificate of a flag cannot be used.
        ServingError: The run could not start, e.g. because no server answers.
    """
    trace = _trace(getattr(options, "trace", None))
    elsewhere = options.rest_url or options.grpc_address
    # The credentials of a local run are only for its router.
    access = access_from(
        options.api_key,
        _name(options.ca_file),
        _name(options.cert_file),
        None if elsewhere else local,
    )
    url = options.rest_url or f"http{'' if access.ca_file is None else 's'}://{_LOCAL}"
    async with contextlib.AsyncExitStack() as stack:
        try:
            rest = AsyncRestClient(options.fleet_url or url, access)
            stack.push_async_callback(rest.close)
            client: AsyncClient = (
                AsyncGrpcClient(options.grpc_address, access)
                if options.grpc_address
                else AsyncRestClient(url, access)
            )
            stack.push_async_callback(client.close)
        except errors.SettingsError as error:
            if options.ca_file is None and options.cert_file is None:
                raise
            raise FlagError(str(error)) from error
        where = options.grpc_address or url
        generate = GenerateOptions(
            await _model(client, where, options.model),
            options.endpoint,
            temperature=0.0,
            ignore_eos=options.ignore_eos,
            timeout=options.timeout,
        )
        calibration = await _calibration(client, where, generate, options.tokens_per_word)
        load_run = _LoadRun(options, client, generate, calibration, where, command)
        watching = None
        if options.fleet_url or not options.grpc_address:
            watching = asyncio.create_task(load_run.watch(rest))
        showing = asyncio.create_task(load_run.progress.show())
        try:
            with _interruptible(load_run.generator):
                await load_run.run_stages(trace)
        finally:
            for task in (watching, showing):
                if task is not None:
                    task.cancel()
                    await asyncio.wait({task})
        return load_run.result()


def _trace(path: Path | None) -> list[Request] | None:
    """Return the requests of ``--trace``.

    Raises:
        FlagError: The file is not a trace.
    """
    try:
        return None if path is None else load_trace(path)
    except errors.InvalidRequest as error:
        raise FlagError(refusal("--trace", str(path), error)) from error


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


async def _model(client: AsyncClient, where: str, wanted: str | None) -> str:
    """Return the id of the model to load.

    Raises:
        NotReady: No server answers, or it does not list its models.
        FlagError: ``--model`` is not served, or missing although several models are served.
    """
    try:
        served = await client.models()
    except errors.ClientError as error:
        if error.kind in {"connect", "timeout"}:
            raise errors.NotReady(f"the server is not available: {error}") from error
        raise errors.NotReady(f"cannot list the server's models: {error}") from error
    if wanted is None and len(served) == 1:
        return served[0]
    if wanted in served and wanted is not None:
        return wanted
    names = ", ".join(served) or "nothing"
    if wanted is None:
        raise FlagError(f"--model is missing: {where} serves several models: {names}")
    raise FlagError(refusal("--model", wanted, f"must be a model that {where} serves: {names}"))


async def _calibration(
    client: AsyncClient, where: str, options: GenerateOptions, per_word: float | None
) -> Calibration:
    """Measure the server's number of tokens per word, with two requests.

    Raises:
        EngineError: The server does not answer the requests.
    """
    if per_word is not None:
        return Calibration(per_word)
    counted = []
    for words in _PROBES:
        prompt = Message("user", text(f"probe {words}", words))
        tokens = 0
        try:
            async with contextlib.aclosing(
                client.generate(GenerateRequest((prompt,), 1, "load-probe"), options)  # type: ignore[type-var]
            ) as deltas:
                async for delta in deltas:
                    tokens = delta.usage.prompt_tokens if delta.usage else tokens
        except errors.ClientError as error:
            raise errors.EngineError(
                f"cannot send requests for {options.model} to {where}: {error}"
            ) from error
        counted.append((words, tokens))
    short, long = counted
    return Calibration.of(short, long)


class _LoadRun:
    """One run of the command line's load against one server."""

    def __init__(
        self,
        options: argparse.Namespace,
        client: AsyncClient,
        generate: GenerateOptions,
        calibration: Calibration,
        where: str,
        command: str,
    ) -> None:
        self._options = options
        self.generator = Generator(client, generate, options.stop_after_failures)
        self.progress = Progress(self.generator, sys.stderr)
        slo = Slo(
            _seconds(options.slo_ttft_ms),
            _seconds(options.slo_itl_ms),
            _seconds(options.slo_latency_ms),
            options.slo_share,
        )
        self._run = Run(where, generate.model, command, time.time(), slo, self.generator.records)
        self._stages = Stages(options, self.generator, self.progress, self._run, calibration)
        self.generator.begin()

    def result(self) -> Run:
        """Return the run with the results so far."""
        self._run.stopped = self.generator.stopped
        return self._run

    async def watch(self, rest: AsyncRestClient) -> None:
        """Record changes of the fleet until cancelled."""

        def note(event: FleetEvent) -> None:
            self._run.events.append(event)

        await watch(rest, lambda: self.generator.now, note)

    async def run_stages(self, trace: list[Request] | None) -> None:
        """Run all stages, or the search."""
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
                    seconds = MAX_SECONDS if options.requests else options.duration
                    profile = RateProfile(rate, rate, seconds)
                    await stages.at_rate(profile, f"{rate:g} requests/s")
            for streams in options.concurrency or ():
                if not self.generator.stopped:
                    await stages.closed(streams)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@contextlib.contextmanager
def _interruptible(generator: Generator) -> Iterator[None]:
    """End the run with a report on Ctrl-C or SIGTERM; a second signal ends the process."""
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
