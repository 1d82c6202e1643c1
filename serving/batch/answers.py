"""Records answers in groups: one transaction for all lines that end during the previous one."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import structlog

from serving.batch.records import Answer
from serving.errors import ServingError
from serving.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_RETRY = 1.0
"""Delay after a failed transaction, seconds."""

Record = Callable[[str, Sequence[Answer]], Awaitable[int]]
"""Records answers of one batch; returns how many were recorded."""


class AnswerWriter:
    """Records answers; a line has ended once ``record`` returns."""

    def __init__(self, write: Record) -> None:
        """Use a function that writes to the database."""
        self._write = write
        self._pending: defaultdict[str, list[tuple[Answer, asyncio.Future[None]]]] = defaultdict(
            list
        )
        self._task: asyncio.Task[None] | None = None

    async def record(self, answer: Answer) -> None:
        """Record an answer, together with others; retries until the database accepts it."""
        recorded = asyncio.get_running_loop().create_future()
        self._pending[answer.batch_id].append((answer, recorded))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await recorded

    async def flush(self, seconds: float) -> None:
        """Wait up to ``seconds`` for answers to be recorded, then cancel the rest."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=seconds)
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while self._pending:
            batch_id = next(iter(self._pending))
            taken = self._pending.pop(batch_id)
            try:
                await self._write(batch_id, [answer for answer, _ in taken])
            except Exception as error:
                metrics.BATCH_FAILURES.labels("answer").inc()
                expected = isinstance(error, ServingError | OSError)
                log.warning(
                    "answers cannot be recorded",
                    batch=batch_id,
                    reason=str(error),
                    exc_info=not expected,
                )
                self._pending[batch_id][:0] = taken
                await asyncio.sleep(_RETRY)
                continue
            for answer, recorded in taken:
                metrics.BATCH_ANSWERS.labels("completed" if answer.completed else "failed").inc()
                if not recorded.done():
                    recorded.set_result(None)
