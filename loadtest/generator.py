"""Sends requests when they are due, whatever becomes of the ones before, and records them."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field

from loadtest.record import Phase, Record
from loadtest.target import Ask, Message, Style, Target, TargetError, Usage
from loadtest.workload import Session

_AFTER_FAILURE = 0.1
"""Seconds that a stream of the closed loop waits after a failure: no busy loop of refusals."""


@dataclass(slots=True)
class Generator:
    """One run against one target. All times are seconds since the run began."""

    target: Target
    style: Style
    stop_after_failures: int = 20
    """Connections in a row that fail until the server counts as gone; 0: never."""
    listeners: list[Callable[[Record], None]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    inflight: int = 0
    stopped: str = ""
    """Why the run ended early; empty: it did not."""
    _began: float = field(default=0.0, init=False)
    _tasks: set[asyncio.Task[object]] = field(default_factory=set, init=False)
    _halt: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _refused: int = field(default=0, init=False)
    _index: int = field(default=0, init=False)
    _left: int | None = field(default=None, init=False)
    """Measured requests that this stage may still send; None: no limit."""

    def begin(self) -> None:
        """Set the clock to zero."""
        # Not the loop's time: uvloop's goes in milliseconds.
        self._began = time.perf_counter()

    @property
    def now(self) -> float:
        """Seconds since ``begin``."""
        return time.perf_counter() - self._began

    def stop(self, reason: str) -> None:
        """End the run early; what is in flight is cancelled and recorded so."""
        if not self.stopped:
            self.stopped = reason
        self._halt.set()

    def halt(self) -> None:
        """End this stage alone early, in the same way."""
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
        """Start each session when it is due; returns when all have ended.

        Args:
            schedule: when (after this call), and what. May be lazy.
            stage: noted in the records.
            warmup: requests due earlier than so many seconds after this call are not measured.
            until: seconds after this call from which no new turn begins.
            requests: so many are measured, and no more are sent; None: as many as are due.

        """
        began = self._begin_stage(requests)
        for after, session in schedule:
            if after >= until or self._left == 0 or not await self._sleep_until(began + after):
                break
            self._start(self._session(session, began + after, stage, began + warmup, began + until))
            if requests is not None:
                await asyncio.sleep(0)  # it takes one of them
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
        """Keep ``streams`` sessions running; the arguments are those of ``open_loop``.

        The warm-up ends when its last answer has, and the measured part begins with all streams
        at once. So all the output of the measured time belongs to measured requests: what was
        asked in the warm-up takes no share of it.
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
        """Run the streams of one part: measured from its first time, ending at its second."""
        measured_from, until = part

        async def stream() -> None:
            while self.now < until and self._left != 0:
                # It is due when the one before has ended: a closed loop has no other schedule.
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
        """Wait for all sessions, or for the stop, which cancels them."""
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
        """Return whether the run goes on when it is ``due``."""
        delay = due - self.now
        if delay > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._halt.wait()
        else:
            await asyncio.sleep(0)  # a schedule that is behind must not keep answers waiting
        return not self._halt.is_set()

    async def _session(
        self, session: Session, due: float, stage: int, measured_from: float, until: float
    ) -> bool:
        """Run all turns; returns whether all went well."""
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
            ask = Ask(tuple(messages), turn.max_tokens, f"load-{stage}-{session.number}")
            answer = await self._ask(ask, due, (stage, session.number, number), phase)
            if answer is None:
                return False
            messages.append(Message("assistant", answer))
        return True

    async def _ask(
        self, ask: Ask, due: float, place: tuple[int, int, int], phase: Phase
    ) -> str | None:
        """Send one request and record it; returns the answer, or none if it failed."""
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
                self.target.send(ask, self.style)  # type: ignore[type-var]
            ) as pieces:
                async for piece in pieces:
                    if piece.text:
                        now = self.now
                        if first is None:
                            first = now
                        else:
                            gaps.append(round((now - last) * 1000, 2))
                        last = now
                        said.append(piece.text)
                    usage = piece.usage or usage
        except TargetError as failure:
            error, message = failure.kind, str(failure)
        except asyncio.CancelledError:
            error, message = "cancelled", self.stopped
            raise
        finally:
            self.inflight -= 1
            # Servers that count nothing are counted by pieces.
            usage = usage or Usage(0, len(said), 0)
            self._keep(
                Record(
                    index,
                    *place,
                    phase,
                    due,
                    sent,
                    first,
                    # Usage comes after the last token: the answer ends with its text.
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
                self.stop(f"the server stopped answering: {record.message}")
        elif record.ok:
            self._refused = 0
