"""Streams server-sent events to one console, and disconnects it if it does not read."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from serving.console.assets import SECURITY_HEADERS
from serving.console.hub import Parts, SnapshotHub

_NOTHING = b":\n"
"""A comment; clients ignore it."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.console")


class SnapshotStream(Response):
    """Sends changes of feeds until the client disconnects or stops reading, or the hub closes."""

    media_type = "text/event-stream"

    def __init__(
        self,
        hub: SnapshotHub,
        feeds: Mapping[str, Callable[[], Parts]],
        *,
        tenant: str | None,
        stall_timeout: float,
    ) -> None:
        """Create the response.

        Args:
            hub: Builds the feeds.
            feeds: See ``SnapshotHub.subscribe``.
            tenant: See ``SnapshotHub.subscribe``.
            stall_timeout: Time after which a client that does not read is disconnected, seconds.

        Raises:
            Overloaded: Too many consoles are open.
        """
        super().__init__(headers={**SECURITY_HEADERS, "cache-control": "no-store"})
        del self.headers["content-length"]
        self._hub = hub
        # Entered here, so that a refusal is an ordinary error response.
        self._open = contextlib.ExitStack()
        self._subscription = self._open.enter_context(hub.subscribe(feeds, tenant))
        self._stall_timeout = stall_timeout

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        del scope
        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(lambda _: self._subscription.wake())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while not gone.done() and not self._hub.closed:
                body = self._subscription.take() or _NOTHING
                async with asyncio.timeout(self._stall_timeout):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                await self._subscription.wait()
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            # An incomplete response makes the server close the connection.
            log.info("console dropped: it does not read", seconds=self._stall_timeout)
        finally:
            gone.cancel()
            self._open.close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
