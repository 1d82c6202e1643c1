"""Sends requests when they are due, and records each of them."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field

from loadtest.record import Phase, Record
from loadtest.workload import Session
from serving.client.aio import AsyncClient
from serving.client.chat import GenerateOptions, GenerateRequest, Message, Usage
from serving.client.errors import ClientError

_AFTER_FAILURE = 0.1
"""Pause of a closed-loop stream after a failure, seconds; prevents a busy loop on rejections."""


@dataclass(slots=True)
class Generator:
    """One run against one server. All times are seconds since the run began."""

    client: AsyncClient
    options: GenerateOptions
    stop_after_failures: int = 20
    """Consecutive failed connections after which the run stops. 0: never."""
    listeners: list[Callable[[Record], None]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    inflight: int = 0
    stopped: str = ""
    """Reason why the run ended early; empty if it did not."""
    _began: float = field(default=0.0, init=False)
    _tasks: set[asyncio.Task[object]] = field(default_factory=set, init=False)
    _halt: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _refused: int = field(default=0, init=False)
    _index: int = field(default=0, init=False)
    _left: int | None = field(default=None, init=False)
    """Remaining number of measured requests of this stage; None if unlimited."""

    def begin(self) -> None:
        """Start the clock."""
        # The event loop's time is too coarse: milliseconds with uvloop.
        self._began = time.perf_counter()

    @property
    def now(self) -> float:
        """Seconds since ``begin``."""
        return time.perf_counter() - self._began

    def stop(self, reason: str) -> None:
        """End the run early; running requests are cancelled and recorded as such."""
        if not self.stopped:
            self.stopped = reason
        self._halt.set()

    def halt(self) -> None:
        """End only this stage early; running requests are cancelled."""
        self._halt.set()

    async def open_loop(
        self,
        schedule: Iterable[tuple[float, Session]],
        *,
        stage: int,
        warmup: float,
        until: float,
        requests: int | None = None,
    ) -> None:
        """Start each session when it is due; wait until all have ended.

        Args:
            schedule: Sessions with their start times, seconds after this call. May be lazy.
            stage: Number of the stage, for the records.
            warmup: Seconds after this call before which requests are not measured.
            until: Seconds after this call after which no turn begins.
            requests: Number of measured requests to send; None sends all that are due.
        """
        began = self._begin_stage(requests)
        for after, session in schedule:
            if after >= until or self._left == 0 or not await self._sleep_until(began + after):
                break
            self._start(self._session(session, began + after, stage, began + warmup, began + until))
            if requests is not None:
                await asyncio.sleep(0)  # the session decrements the number
        await self._finish()

    async def closed_loop(
        self,
        sessions: Iterator[Session],
        streams: int,
        *,
        stage: int,
        warmup: float,
        until: float,
        requests: int | None = None,
    ) -> None:
        """Keep ``streams`` sessions running; the other arguments are those of ``open_loop``.

        The warm-up ends with its last answer; then all streams start measured requests at once,
        so no warm-up request overlaps the measured time.
        """
        began = self._begin_stage(None)
        if warmup > 0:
            await self._streams(sessions, streams, stage, (math.inf, began + warmup))
        if self._halt.is_set():
            return
        self._left = requests
        now = self.now
        await self._streams(sessions, streams, stage, (now, now + max(until - warmup, 0.0)))

    async def _streams(
        self, sessions: Iterator[Session], streams: int, stage: int, part: tuple[float, float]
    ) -> None:
        """Run all streams; ``part`` is (start of the measurement, end), seconds."""
        measured_from, until = part

        async def stream() -> None:
            while self.now < until and self._left != 0:
                # A session is due when the last one has ended: a closed loop has no schedule.
                session = next(sessions, None)
                if session is None:
                    return
                fine = await self._session(session, self.now, stage, measured_from, until)
                if not fine:
                    await asyncio.sleep(_AFTER_FAILURE)

        for _ in range(streams):
            self._start(stream())
        await self._finish()

    def _begin_stage(self, requests: int | None) -> float:
        self._left = requests
        if not self.stopped:
            self._halt.clear()
        return self.now

    def _start(self, coroutine: Coroutine[None, None, object]) -> None:
        task: asyncio.Task[object] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self) -> None:
        """Wait for all sessions; a stop cancels them."""
        stop = asyncio.ensure_future(self._halt.wait())
        try:
            while self._tasks and not self._halt.is_set():
                await asyncio.wait({stop, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            left = tuple(self._tasks)
            for task in left:
                task.cancel()
            results = await asyncio.gather(*left, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _sleep_until(self, due: float) -> bool:
        """Sleep until ``due``; return False if the stage was stopped."""
        delay = due - self.now
        if delay > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._halt.wait()
        else:
            await asyncio.sleep(0)  # a late schedule must not delay answers
        return not self._halt.is_set()

    async def _session(
        self, session: Session, due: float, stage: int, measured_from: float, until: float
    ) -> bool:
        """Run all turns; return whether all were answered."""
        messages = [Message("system", session.system)] if session.system else []
        for number, turn in enumerate(session.turns):
            if number > 0:
                due = self.now + session.think
                if due >= until or not await self._sleep_until(due):
                    return True
            phase: Phase = "warmup" if due < measured_from else "measure"
            if phase == "measure" and self._left is not None:
                if self._left == 0:
                    return True
                self._left -= 1
            messages.append(Message("user", turn.text))
            request = GenerateRequest(
                tuple(messages), turn.max_tokens, f"load-{stage}-{session.number}"
            )
            answer = await self._send(request, due, (stage, session.number, number), phase)
            if answer is None:
                return False
            messages.append(Message("assistant", answer))
        return True

    async def _send(
        self, request: GenerateRequest, due: float, place: tuple[int, int, int], phase: Phase
    ) -> str | None:
        """Send a request and record it; return the answer, or None if it failed."""
        index, self._index = self._index, self._index + 1
        self.inflight += 1
        sent = self.now
        first: float | None = None
        last = 0.0
        gaps: list[float] = []
        said: list[str] = []
        usage: Usage | None = None
        error = message = ""
        try:
            async with contextlib.aclosing(
                self.client.generate(request, self.options)  # type: ignore[type-var]
            ) as deltas:
                async for delta in deltas:
                    text = delta.text
                    if text:
                        now = self.now
                        if first is None:
                            first = now
                        else:
                            gaps.append(round((now - last) * 1000, 2))
                        last = now
                        said.append(text)
                    usage = delta.usage or usage
        except ClientError as failure:
            error, message = failure.kind, str(failure)
        except asyncio.CancelledError:
            error, message = "cancelled", self.stopped
            raise
        finally:
            self.inflight -= 1
            # For servers that report no usage: one token for each chunk.
            usage = usage or Usage(0, len(said), 0)
            self._keep(
                Record(
                    index,
                    *place,
                    phase,
                    due,
                    sent,
                    first,
                    # Usage arrives after the last token; the answer ends with its text.
                    self.now if error or first is None else last,
                    usage.prompt_tokens,
                    usage.output_tokens,
                    usage.cached_tokens,
                    tuple(gaps),
                    error,
                    message,
                )
            )
        return None if error else "".join(said)

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        for listener in self.listeners:
            listener(record)
        if record.error == "connect":
            self._refused += 1
            if 0 < self.stop_after_failures <= self._refused:
                self.stop(f"the server stopped responding: {record.message}")
        elif record.ok:
            self._refused = 0
