"""Distributes snapshots to open consoles: each is built and encoded once for all of them.

A feed is built once per interval while somebody reads it. A subscriber holds version numbers only,
no queue: one that reads slowly skips snapshots and never holds old ones, so memory depends on the
number of feeds, not on the number of consoles or on their speed.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from serving.errors import Overloaded

BEAT = 5
"""Every so many intervals, subscriptions are woken even if nothing changed: the end of a connection
is noticed when something is written to it."""

Parts = Mapping[str, bytes]
"""Event names and their JSON data. The names of a feed's parts are the same in each snapshot."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.console")


@dataclass(slots=True)
class _Feed:
    build: Callable[[], Parts]
    readers: int = 0
    data: dict[str, bytes] = field(default_factory=dict)
    """The newest data of each part."""
    events: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Version and whole server-sent event of each part."""

    def refresh(self) -> bool:
        """Build a snapshot; return whether any part differs from the last one."""
        changed = False
        for name, data in self.build().items():
            if self.data.get(name) != data:
                changed = True
                version = self.events.get(name, (0, b""))[0] + 1
                self.data[name] = data
                self.events[name] = version, b"event: %s\ndata: %s\n\n" % (name.encode(), data)
        return changed


class Subscription:
    """One console's view of its feeds."""

    def __init__(self, feeds: Sequence[_Feed]) -> None:
        self._feeds = feeds
        self._seen: dict[tuple[int, str], int] = {}
        self._woken = asyncio.Event()

    def take(self) -> bytes:
        """Return the events that changed since the last call; empty if none did."""
        found = []
        for index, feed in enumerate(self._feeds):
            for name, (version, event) in feed.events.items():
                if self._seen.get((index, name)) != version:
                    self._seen[index, name] = version
                    found.append(event)
        return b"".join(found)

    def wake(self) -> None:
        """End the current or next ``wait``."""
        self._woken.set()

    async def wait(self) -> None:
        """Wait until a feed has changed, ``wake`` was called, or a beat has passed."""
        await self._woken.wait()
        self._woken.clear()


class SnapshotHub:
    """The feeds that consoles read, and the task that builds them."""

    def __init__(
        self,
        *,
        interval: float,
        max_subscriptions: int,
        on_readers: Callable[["SnapshotHub"], None] = lambda _: None,
    ) -> None:
        """Create a hub without feeds.

        Args:
            interval: Time between two snapshots of a feed, seconds.
            max_subscriptions: Maximum number of subscriptions at the same time.
            on_readers: Called with this hub after each change of the feeds that are read.
        """
        self._interval = interval
        self._most = max_subscriptions
        self._feeds: dict[str, _Feed] = {}
        self._subscriptions: set[Subscription] = set()
        self._task: asyncio.Task[None] | None = None
        self._ticks = 0
        self.closed = False
        self._on_readers = on_readers

    @property
    def subscriptions(self) -> int:
        """Number of open subscriptions."""
        return len(self._subscriptions)

    def reading(self, prefix: str) -> list[str]:
        """Return the names of the feeds being read that start with ``prefix``."""
        return [name for name in self._feeds if name.startswith(prefix)]

    @contextmanager
    def subscribe(self, feeds: Mapping[str, Callable[[], Parts]]) -> Iterator[Subscription]:
        """Read feeds inside the block.

        Args:
            feeds: Names, and functions that build a snapshot. Subscriptions with the same name
                share one feed and the function of the first of them.

        Raises:
            Overloaded: The maximum number of subscriptions is reached.
        """
        if self.subscriptions >= self._most:
            raise Overloaded(
                f"{self._most} consoles are open (console.max_streams); close one and try again"
            )
        mine = []
        try:
            for name, build in feeds.items():
                feed = self._feeds.setdefault(name, _Feed(build))
                feed.readers += 1
                mine.append(name)
                if not feed.events:
                    feed.refresh()
            self._on_readers(self)
            subscription = Subscription([self._feeds[name] for name in mine])
            subscription.wake()
            self._subscriptions.add(subscription)
            if self._task is None and not self.closed:
                self._task = asyncio.create_task(self._run())
            try:
                yield subscription
            finally:
                self._subscriptions.discard(subscription)
        finally:
            for name in mine:
                self._feeds[name].readers -= 1
                if not self._feeds[name].readers:
                    del self._feeds[name]
            self._on_readers(self)

    async def _run(self) -> None:
        """Build the feeds until nobody reads them."""
        try:
            while self._subscriptions:
                await asyncio.sleep(self._interval)
                self._tick()
        finally:
            self._task = None

    def _tick(self) -> None:
        self._ticks += 1
        changed = self._ticks % BEAT == 0
        for name, feed in tuple(self._feeds.items()):
            try:
                changed |= feed.refresh()
            except Exception:  # the last snapshot stays; the other feeds go on
                log.exception("snapshot failed", feed=name)
        if changed:
            for subscription in self._subscriptions:
                subscription.wake()

    def close(self) -> None:
        """End all subscriptions; their streams close."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        for subscription in self._subscriptions:
            subscription.wake()
