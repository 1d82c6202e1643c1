"""What is in flight in this router, and whether it still takes new work."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import NotReady


class Gate:
    """Counts requests of both protocols; closed while the router drains."""

    def __init__(self) -> None:
        self._inflight = 0
        self._closed_because: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def inflight(self) -> int:
        """Requests that were let in and have not ended."""
        return self._inflight

    @property
    def open(self) -> bool:
        """Whether new work is taken."""
        return self._closed_because is None

    def close(self, reason: str) -> None:
        """Refuse new work from here on; what is in flight goes on."""
        self._closed_because = reason

    def check(self) -> None:
        """Return if new work is taken.

        Raises:
            NotReady: the router drains.
        """
        if self._closed_because is not None:
            raise NotReady(f"this router takes no new work ({self._closed_because}): try again")

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Count a request in for as long as the block runs. Does not check."""
        self._inflight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inflight -= 1
            if self._inflight == 0:
                self._idle.set()

    async def idle(self, timeout: float) -> bool:
        """Wait until nothing is in flight; false when ``timeout`` seconds were not enough."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
