"""One open stream between a rank and a router: receives requests and sends deltas."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from serving.engine.base import Engine
from serving.engine.router_link.request_runner import RequestRunner
from serving.engine.router_link.send_queue import SendQueue
from serving.h2grpc.client import CallError, ClientCall
from serving.link.v1 import link_pb2
from serving.settings import LinkSettings

CLOSE_TIMEOUT = 1.0
"""Time for a stream to close, seconds."""

_FRAME_INTERVAL = 0.0005
"""Minimum time between two frames, seconds; less than an engine's step. Without it, the output of
requests that are not synchronized would reach the router one delta per frame."""


class SlowRouterError(Exception):
    """A router does not read its stream fast enough."""


class RouterStream:
    """Runs a router's requests until the stream ends. Call from a single event loop."""

    def __init__(
        self,
        call: ClientCall,
        engine: Engine,
        settings: LinkSettings,
        *,
        prefix: str,
        report_trouble: Callable[[], None],
    ) -> None:
        """Create the stream without transferring messages; see :meth:`run`.

        Args:
            call: Call of ``RouterService.Join`` after Welcome was received.
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
            CallError: The connection failed.
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
            self.runner.abort_all()

    async def _receive(self) -> None:
        while (data := await self._call.read()) is not None:
            message = link_pb2.RouterMessage.FromString(data)
            for submit in message.submits:
                self.runner.submit(submit)
            for choice in message.completed:
                self.runner.complete(choice.request_id, choice.index)
            for request_id in message.abort_request_ids:
                self.runner.abort(request_id)
            if message.HasField("ping"):
                self.queue.pong(message.ping.number)

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            await self.queue.ready()
            if (early := next_at - loop.time()) > 0:
                await asyncio.sleep(early)
            for frame in await self.queue.frames():
                await self._call.write(frame.SerializeToString())
            self.queue.sent()
            next_at = loop.time() + _FRAME_INTERVAL

    async def _close(self, receiver: "asyncio.Task[None]") -> None:
        """Close the stream after sending the queued output."""
        self.runner.abort_all()
        with contextlib.suppress(TimeoutError, CallError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.queue.empty()
                self._call.done_writing()
                await asyncio.wait([receiver])
