"""One open stream between a rank and a router: receives requests and sends deltas."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from serving.engine.base import Engine
from serving.engine.router_link.request_runner import RequestRunner
from serving.engine.router_link.send_queue import SendQueue
from serving.settings import LinkSettings

EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  missing in grpc's type stubs
CLOSE_TIMEOUT = 1.0
"""Time for the requests of a lost router to end, and for a stream to close, seconds."""


class SlowRouterError(Exception):
    """A router does not read its stream fast enough."""


class RouterStream:
    """Runs a router's requests until the stream ends. Call from a single event loop."""

    def __init__(
        self,
        call: Any,
        engine: Engine,
        settings: LinkSettings,
        *,
        prefix: str,
        report_trouble: Callable[[], None],
    ) -> None:
        """Create the stream without transferring messages; see :meth:`run`.

        Args:
            call: gRPC call of ``RouterService.Join`` after Welcome was received.
            engine: Engine that runs the requests.
            settings: Limits of the link.
            prefix: Prefix of request ids on the engine; prevents collisions between streams.
            report_trouble: Called when the engine fails on a request.
        """
        self._call = call
        self._engine = engine
        self._settings = settings
        self.queue = SendQueue(settings.outbox_limit, settings.max_frame_bytes)
        self.runner = RequestRunner(
            engine, self.queue, prefix=prefix, report_trouble=report_trouble
        )

    def drain(self, reason: str) -> None:
        """Announce the drain to the router, and reject requests that still arrive."""
        self.queue.drain(reason)
        self.runner.drain(reason)

    async def idle(self) -> None:
        """Wait until no request runs and all deltas have been passed to the transport."""
        await self.runner.idle()
        await self.queue.empty()

    async def run(self, closing: asyncio.Event) -> None:
        """Transfer messages until the router ends the stream or ``closing`` is set.

        Running requests of the router are aborted before the method returns.

        Raises:
            SlowRouterError: More than ``link.outbox_limit`` deltas were queued.
            AioRpcError: The connection failed.
        """
        self.queue.follow(self._engine.kv_mirror)
        receiver = asyncio.create_task(self._receive())
        sender = asyncio.create_task(self._send())
        tasks: list[asyncio.Task[Any]] = [
            receiver,
            sender,
            asyncio.create_task(self.queue.overflowed.wait()),
            asyncio.create_task(closing.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if closing.is_set():
                await self._close(receiver)
                return
            if self.queue.overflowed.is_set():
                raise SlowRouterError(
                    f"the router reads too slowly: more than {self._settings.outbox_limit} deltas "
                    "are queued (link.outbox_limit); its requests were aborted",
                )
            for task in (receiver, sender):
                if task.done():
                    task.result()
        finally:
            self.queue.close()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # mark as retrieved, or asyncio logs it
            await self.runner.abort_all(CLOSE_TIMEOUT)

    async def _receive(self) -> None:
        while (message := await self._call.read()) is not EOF:
            for submit in message.submits:
                self.runner.submit(submit)
            for request_id in message.abort_request_ids:
                self.runner.abort(request_id)
            if message.HasField("ping"):
                self.queue.pong(message.ping.number)

    async def _send(self) -> None:
        while True:
            for frame in await self.queue.frames():
                await self._call.write(frame)
            self.queue.sent()

    async def _close(self, receiver: "asyncio.Task[None]") -> None:
        """Close the stream after sending the queued output."""
        await self.runner.abort_all(CLOSE_TIMEOUT)
        with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.queue.empty()
                await self._call.done_writing()
                await asyncio.wait([receiver])
