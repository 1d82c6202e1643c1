"""Execution of one router's requests: one task per request, ended exactly once."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from serving.engine.base import Engine
from serving.engine.router_link.send_queue import SendQueue
from serving.link.v1 import link_pb2

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Error = link_pb2.RequestError


class RequestRunner:
    """Runs a router's requests on the engine and queues their deltas.

    Methods never raise because of a router's input: an invalid request ends with an error delta.
    """

    def __init__(
        self,
        engine: Engine,
        queue: SendQueue,
        *,
        prefix: str,
        report_trouble: Callable[[], None],
    ) -> None:
        """Create the runner without requests.

        Args:
            engine: Engine that generates the deltas.
            queue: Queue to which the deltas are added.
            prefix: Prefix of request ids on the engine, unique per stream.
            report_trouble: Called when the engine fails on a request.
        """
        self._engine = engine
        self._queue = queue
        self._prefix = prefix
        self._report_trouble = report_trouble
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._drain_reason: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Number of requests that have not ended."""
        return len(self._tasks)

    def submit(self, request: link_pb2.Submit) -> None:
        """Start a request, or reject it with an error delta."""
        request_id = request.request_id
        if self._drain_reason is not None:
            self._reject(request_id, _Error.DRAINING, f"the rank is draining: {self._drain_reason}")
        elif not request_id:
            self._reject(request_id, _Error.INVALID_REQUEST, "the request has no id")
        elif request_id in self._tasks:
            self._reject(
                request_id, _Error.INVALID_REQUEST, f"request {request_id} is already running"
            )
        elif not request.prompt_token_ids:
            self._reject(request_id, _Error.INVALID_REQUEST, "the prompt has no tokens")
        else:
            self._idle.clear()
            task = asyncio.create_task(self._run(request))
            self._tasks[request_id] = task
            task.add_done_callback(lambda _: self._ended(request_id))

    def abort(self, request_id: str) -> None:
        """End a request without a further delta. Unknown ids are ignored."""
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()

    def drain(self, reason: str) -> None:
        """Reject new requests; running requests continue."""
        self._drain_reason = reason

    async def idle(self) -> None:
        """Wait until no request runs."""
        await self._idle.wait()

    async def abort_all(self, timeout: float) -> None:
        """Abort all requests; wait up to ``timeout`` seconds for the engine to free them."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=timeout)
            if pending:
                log.warning("requests do not end", count=len(pending), after_seconds=timeout)

    async def _run(self, request: link_pb2.Submit) -> None:
        request_id = request.request_id
        prefixed = link_pb2.Submit()
        prefixed.CopyFrom(request)
        prefixed.request_id = self._prefix + request_id
        finished = False
        try:
            async with contextlib.aclosing(self._engine.generate(prefixed)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    delta.request_id = request_id
                    finished = finished or delta.finished
                    if delta.error.code == _Error.ENGINE_FAILED:
                        self._report_trouble()
                    self._queue.put(delta)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("the engine raised on a request", request_id=request_id)
            self._report_trouble()
            if not finished:
                self._reject(
                    request_id, _Error.ENGINE_FAILED, f"{type(error).__name__} in the engine"
                )
        else:
            if not finished:
                self._reject(
                    request_id,
                    _Error.ENGINE_FAILED,
                    "the engine ended the request without a final delta",
                )

    def _ended(self, request_id: str) -> None:
        del self._tasks[request_id]
        if not self._tasks:
            self._idle.set()

    def _reject(self, request_id: str, code: link_pb2.RequestError.Code, message: str) -> None:
        self._queue.put(
            link_pb2.Delta(
                request_id=request_id,
                finished=True,
                error=_Error(code=code, message=message),
            ),
        )
