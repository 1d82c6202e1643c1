"""The stages of a run, each with one load: arrivals, texts and results."""

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import replace

from loadtest.arrivals import RateProfile, arrivals, gaps
from loadtest.generator import Generator
from loadtest.progress import Progress
from loadtest.run import Run, Stage
from loadtest.statistics import Summary
from loadtest.trace import TRACE_BLOCK, Request
from loadtest.workload import Calibration, Session, Synthetic, from_trace
from serving.client.flags import MAX_SECONDS


class Stages:
    """Runs stages one after another and stores them in the run."""

    def __init__(
        self,
        options: argparse.Namespace,
        generator: Generator,
        progress: Progress,
        run: Run,
        calibration: Calibration,
    ) -> None:
        """Prepare the stages of a run; see ``arguments`` for the options."""
        self._options = options
        self._progress = progress
        self._calibration = calibration
        self._requests: int | None = getattr(options, "requests", None)
        self.generator = generator
        self.run = run
        # A repeated search must not find its texts in the server's prefix cache. Arrivals and
        # lengths depend only on the seed.
        self._texts = str(time.time_ns()) if options.command == "search" else str(options.seed)

    async def at_rate(self, profile: RateProfile, label: str, pattern: str = "") -> None:
        """Run a stage at a rate; the same seed and pattern give the same arrivals."""
        options = self._options
        pattern = f"{options.seed}/{pattern or len(self.run.stages)}"
        due = arrivals(profile, gaps(options.arrivals, options.burstiness, random.Random(pattern)))  # noqa: S311  no secret
        schedule = zip(due, self._sessions(pattern), strict=False)
        shard, count = getattr(options, "shard", (0, 1))
        await self._open(
            itertools.islice(schedule, shard, None, count), label, profile.mean, profile.duration
        )

    async def replay(self, trace: list[Request]) -> None:
        """Run a stage with the requests of a trace, at their times."""
        options = self._options
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
            scaled, self._calibration, block=options.trace_block, speed=options.speed
        )
        shard, count = options.shard
        name = f"{options.trace.name} at {options.speed:g}x"
        if options.trace_block != TRACE_BLOCK:
            name += f", {options.trace_block / TRACE_BLOCK:.3g} of the lengths"
        # Include the last request, which is due exactly at the end of the trace.
        seconds = min(options.duration, length + 1e-6)
        rate = len(trace) / max(length, 1e-6)
        await self._open(itertools.islice(schedule, shard, None, count), name, rate, seconds)

    async def closed(self, streams: int) -> Summary:
        """Run a stage with ``streams`` concurrent streams; return its summary."""
        options = self._options
        warmup = min(options.warmup, options.duration / 2)
        seconds = MAX_SECONDS if self._requests else options.duration
        stage = self._new(f"{streams} streams", streams, "streams", warmup, seconds)
        await self.generator.closed_loop(
            self._sessions(f"{options.seed}/{stage.index}"),
            streams,
            stage=stage.index,
            warmup=warmup,
            until=seconds,
            requests=self._requests,
        )
        return self.run.summary(self._ended(stage))

    async def _open(
        self, schedule: Iterator[tuple[float, Session]], label: str, load: float, seconds: float
    ) -> None:
        warmup = min(self._options.warmup, seconds / 2)
        stage = self._new(label, load, "requests/s", warmup, seconds)
        await self.generator.open_loop(
            schedule, stage=stage.index, warmup=warmup, until=seconds, requests=self._requests
        )
        self._ended(stage)

    def _new(self, label: str, load: float, unit: str, warmup: float, seconds: float) -> Stage:
        stage = Stage(len(self.run.stages), label, load, unit, self.generator.now, warmup, seconds)
        self.run.stages.append(stage)
        self._progress.stage = label
        return stage

    def _ended(self, stage: Stage) -> Stage:
        """Store the actual length of a stage, which may have ended early."""
        seconds = min(stage.seconds, self.generator.now - stage.began)
        ended = replace(stage, seconds=seconds, warmup=min(stage.warmup, seconds))
        self.run.stages[stage.index] = ended
        return ended

    def _sessions(self, pattern: str) -> Iterator[Session]:
        options = self._options
        return Synthetic(
            options.prompt_tokens,
            options.output_tokens,
            options.turns,
            options.think,
            options.shared_tokens,
            lengths=pattern,
            # Stages use different texts: an earlier stage must not fill the prefix cache.
            texts=f"{self._texts}/{len(self.run.stages)}",
        ).sessions(self._calibration)
