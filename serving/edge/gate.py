"""Drain gate: tracks requests in flight and rejects new ones while the router drains."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import NotReady


class DrainGate:
    """Counts the requests in flight over REST and gRPC; closed while the router drains."""

    def __init__(self) -> None:
        self._inflight = 0
        self._closed_reason: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def inflight(self) -> int:
        """Number of requests in flight."""
        return self._inflight

    @property
    def open(self) -> bool:
        """Whether new requests are accepted."""
        return self._closed_reason is None

    def close(self, reason: str) -> None:
        """Reject new requests from now on; requests in flight continue."""
        self._closed_reason = reason

    def check(self) -> None:
        """Check that new requests are accepted.

        Raises:
            NotReady: The gate is closed.
        """
        if self._closed_reason is not None:
            raise NotReady(
                f"this router accepts no new requests ({self._closed_reason}); try again"
            )

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count one request in flight while the block runs; does not check the gate."""
        self._inflight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inflight -= 1
            if self._inflight == 0:
                self._idle.set()

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until no request is in flight.

        Args:
            timeout: Maximum wait, seconds.

        Returns:
            Whether the router became idle in time.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
