"""Execution of one router's requests, each ended exactly once."""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from serving.engine.base import Engine, RunningRequest
from serving.engine.router_link.send_queue import SendQueue
from serving.link.v1 import link_pb2

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Error = link_pb2.RequestError


class RequestRunner:
    """Runs a router's requests on the engine and queues their deltas.

    Methods never raise an exception because of a router's input; an invalid request ends with an
    error delta.
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
        self._running: dict[str, RunningRequest | None] = {}
        """Requests by the router's id; None until the engine has accepted the request."""
        self._drain_reason: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Number of requests that have not ended."""
        return len(self._running)

    def submit(self, request: link_pb2.Submit) -> None:
        """Start a request, or reject it with an error delta."""
        request_id = request.request_id
        if self._drain_reason is not None:
            self._reject(request_id, _Error.DRAINING, f"the rank is draining: {self._drain_reason}")
        elif not request_id:
            self._reject(request_id, _Error.INVALID_REQUEST, "the request has no id")
        elif request_id in self._running:
            self._reject(
                request_id, _Error.INVALID_REQUEST, f"request {request_id} is already running"
            )
        elif not request.prompt_token_ids:
            self._reject(request_id, _Error.INVALID_REQUEST, "the prompt has no tokens")
        else:
            self._start(request)

    def abort(self, request_id: str) -> None:
        """End a request without a further delta. Unknown ids are ignored."""
        running = self._running.get(request_id)
        if running is not None:
            running.cancel()
            self._end(request_id)

    def complete(self, request_id: str, index: int) -> None:
        """End a choice whose output is complete. Unknown ids are ignored."""
        running = self._running.get(request_id)
        if running is not None and running.complete(index):
            self._end(request_id)

    def drain(self, reason: str) -> None:
        """Reject new requests; running requests continue."""
        self._drain_reason = reason

    async def idle(self) -> None:
        """Wait until no request runs."""
        await self._idle.wait()

    def abort_all(self) -> None:
        """Abort all requests."""
        for request_id in tuple(self._running):
            self.abort(request_id)

    def _start(self, request: link_pb2.Submit) -> None:
        request_id = request.request_id
        request.request_id = self._prefix + request_id
        self._idle.clear()
        self._running[request_id] = None
        try:
            running = self._engine.submit(request, partial(self._deliver, request_id))
        except Exception as error:
            log.exception("the engine raised on a request", request_id=request_id)
            self._report_trouble()
            message = f"{type(error).__name__} in the engine"
            self._reject(request_id, _Error.ENGINE_FAILED, message)
            self._end(request_id)
            return
        if request_id in self._running:
            self._running[request_id] = running

    def _deliver(self, request_id: str, delta: link_pb2.Delta) -> None:
        delta.request_id = request_id
        if delta.finished:
            if delta.error.code == _Error.ENGINE_FAILED:
                self._report_trouble()
            self._end(request_id)
        self._queue.put(delta)

    def _end(self, request_id: str) -> None:
        del self._running[request_id]
        if not self._running:
            self._idle.set()

    def _reject(self, request_id: str, code: link_pb2.RequestError.Code, message: str) -> None:
        self._queue.put(
            link_pb2.Delta(
                request_id=request_id,
                finished=True,
                error=_Error(code=code, message=message),
            ),
        )
