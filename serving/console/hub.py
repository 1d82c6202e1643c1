"""Distributes snapshots to open consoles: each is built and encoded once for all of them.

A feed is built once per interval while it has readers. A subscription holds version numbers instead
of a queue: a console that reads slowly skips snapshots. Memory therefore depends on the number of
feeds, not on the number of consoles or their speed.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from serving.errors import Overloaded

BEAT = 5
"""Number of intervals after which subscriptions are woken even if nothing changed, because a closed
connection is noticed only when something is written to it."""

TENANT_PART = 4
"""A tenant without role admin can have 1 / ``TENANT_PART`` of the subscriptions, but at least 2."""

Parts = Mapping[str, bytes]
"""JSON data by event name. All snapshots of a feed have the same names."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.console")


@dataclass(slots=True)
class _Feed:
    build: Callable[[], Parts]
    readers: int = 0
    data: dict[str, bytes] = field(default_factory=dict)
    """The newest data of each part."""
    events: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Version and complete server-sent event of each part."""

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
        """Return the events that changed since the last call; empty if there are none."""
        found = []
        for index, feed in enumerate(self._feeds):
            for name, (version, event) in feed.events.items():
                if self._seen.get((index, name)) != version:
                    self._seen[index, name] = version
                    found.append(event)
        return b"".join(found)

    def wake(self) -> None:
        """Make the current or the next ``wait`` return."""
        self._woken.set()

    async def wait(self) -> None:
        """Wait until a feed has changed, ``wake`` was called, or a beat has passed."""
        await self._woken.wait()
        self._woken.clear()


class SnapshotHub:
    """Builds the feeds that consoles read."""

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
            max_subscriptions: Maximum number of open subscriptions.
            on_readers: Called with this hub whenever the set of feeds being read changes.
        """
        self._interval = interval
        self._most = max_subscriptions
        self._most_each = max(max_subscriptions // TENANT_PART, 2)
        self._tenants: Counter[str] = Counter()
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
    def subscribe(
        self, feeds: Mapping[str, Callable[[], Parts]], tenant: str | None = None
    ) -> Iterator[Subscription]:
        """Subscribe to feeds for the duration of the block.

        Args:
            feeds: Functions that build snapshots, by feed name. Subscriptions to the same name
                share one feed, built by the function of the first subscription.
            tenant: Tenant, which can have only a part of the subscriptions. None: an administrator.

        Raises:
            Overloaded: The maximum number of subscriptions, or the tenant's part, is reached.
        """
        if self.subscriptions >= self._most:
            raise Overloaded(
                f"{self._most} consoles are open (console.max_streams); close one and try again"
            )
        if tenant is not None and self._tenants[tenant] >= self._most_each:
            raise Overloaded(
                f"your tenant has {self._most_each} open streams of the console, its part of "
                f"{self._most} (console.max_streams); close a console and try again"
            )
        mine = []
        owner = [] if tenant is None else [tenant]
        self._tenants.update(owner)
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
            self._tenants.subtract(owner)
            self._tenants += Counter()  # without those that have none
            for name in mine:
                self._feeds[name].readers -= 1
                if not self._feeds[name].readers:
                    del self._feeds[name]
            self._on_readers(self)

    async def _run(self) -> None:
        """Build the feeds until the last subscription ends."""
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
            except Exception:  # the last snapshot stays; the other feeds continue
                log.exception("snapshot failed", feed=name)
        if changed:
            for subscription in self._subscriptions:
                subscription.wake()

    def close(self) -> None:
        """End all subscriptions and close their streams."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        for subscription in self._subscriptions:
            subscription.wake()
