"""Maintains an up-to-date copy of the objects of one kind: a list, followed by a watch.

A watch that ends or is interrupted resumes at its last ``resourceVersion``, which events and
bookmarks advance. If the server no longer has that version (410) or responds with anything but
events, the objects are listed again. Retries back off exponentially with jitter.
"""

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import aiohttp
import structlog
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.watch import Watch

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_errors import raise_if_final
from serving.settings import KubernetesSettings
from serving.telemetry import autoscaler_metrics as metrics

_FIRST_BACKOFF = 0.25
_MOST_BACKOFF = 5.0
"""Maximum backoff, seconds; also the list interval if listing is permitted but watching is not."""
_SHORTEST = 1.0
"""Minimum duration of a watch that ended regularly, seconds; a shorter one counts as failed."""

_INTERRUPTED: defaultdict[str, set[object]] = defaultdict(set)
"""Running watches that are not established, by kind; there is one watch of each kind per pool."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")

Seen = TypeVar("Seen")


class WatchInterrupted(ActuatorError):
    """A watch was interrupted but can resume at its last version."""


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch."""

    kind: str
    """ADDED, MODIFIED, DELETED, or BOOKMARK (only advances the version)."""
    item: Any
    version: str | None
    """Version at which a later watch can resume; None if the server did not send it."""


class Informer(Generic[Seen]):
    """Tracks the cluster's "nodes" or the namespace's "pods", each reduced by ``read``."""

    def __init__(
        self,
        api: KubernetesApi,
        settings: KubernetesSettings,
        plural: str,
        read: Callable[[Any], Seen | None],
        changed: Callable[[], None],
        *,
        selector: str = "",
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Track the objects that match ``selector``.

        Args:
            api: The API server.
            settings: Timeouts of API calls and watches.
            plural: "nodes" or "pods".
            read: Reduces an object to the data to keep; returns None to drop the object.
            changed: Called after ``items`` has changed.
            selector: Label selector; empty for all objects.
            pause: Sleeps for the given number of seconds.
            chance: Returns a number from 0 to 1, for the jitter.
        """
        self.items: dict[str, Seen] = {}
        """Reduced objects by name; empty before the first list."""
        self._api = api
        self._settings = settings
        self._plural = plural
        self._selector = selector
        self._read = read
        self._changed = changed
        self._pause = pause
        self._chance = chance
        self._version: str | None = None
        self._backoff = _FIRST_BACKOFF
        self._problem = ""
        metrics.AUTOSCALER_WATCHING.labels(plural).set(0)

    async def run(self) -> None:
        """Keep ``items`` up to date until cancelled; failures are logged and retried."""
        _INTERRUPTED[self._plural].add(self)
        try:
            await self._run()
        finally:
            _INTERRUPTED[self._plural].discard(self)

    async def _run(self) -> None:
        while True:
            try:
                if self._version is None:
                    await self._list()
                await self._follow()
                continue
            except WatchInterrupted as error:
                self._stale(error)
            except ActuatorError as error:
                self._version = None
                self._stale(error)
            except Exception as error:
                self._version = None
                log.exception("a watch failed", watch=self._plural)
                self._stale(error)
            # Jitter between half and all of the backoff: watches must not reconnect in step.
            await self._pause(self._backoff * (0.5 + self._chance() / 2))
            self._backoff = min(2 * self._backoff, _MOST_BACKOFF)

    async def _list(self) -> None:
        found, version = await self._api.listed(self._plural, self._selector)
        items = {
            item.metadata.name: seen for item in found if (seen := self._read(item)) is not None
        }
        self._version = version
        if items != self.items:
            self.items = items
            self._changed()

    async def _follow(self) -> None:
        begun = asyncio.get_running_loop().time()
        async with aclosing(self._changes()) as changes:
            async for change in changes:
                self._version = change.version or self._version
                self._backoff = _FIRST_BACKOFF
                if change.kind != "BOOKMARK":
                    self._take(change)
        if asyncio.get_running_loop().time() - begun < min(_SHORTEST, self._settings.watch_timeout):
            raise WatchInterrupted(f"Kubernetes: watch {self._plural}: ended immediately")
        self._backoff = _FIRST_BACKOFF

    def _take(self, change: Change) -> None:
        name = change.item.metadata.name
        before = self.items.get(name)
        seen = None if change.kind == "DELETED" else self._read(change.item)
        if seen == before:
            return
        if seen is None:
            del self.items[name]
        else:
            self.items[name] = seen
        self._changed()

    async def _changes(self) -> AsyncGenerator[Change]:
        """Yield the changes since the last version.

        Ends when the server closes the watch after ``watch_timeout``. A dead connection times out
        ``api_timeout`` later.

        Raises:
            WatchInterrupted: The connection was lost.
            ActuatorError: The version expired, the watch was rejected, or an event is invalid.
        """
        what = f"watch {self._plural}"
        seconds = self._settings.watch_timeout

        async def opened(**query: Any) -> Any:
            del query["_preload_content"]  # only for calls without a raw variant
            answer = await self._api.opened(self._plural, **query)
            self._fresh()
            return answer

        events = Watch("V1Node" if self._plural == "nodes" else "V1Pod")  # type: ignore[no-untyped-call]
        events.stream(  # type: ignore[no-untyped-call]
            opened,
            resource_version=self._version,
            label_selector=self._selector,
            allow_watch_bookmarks=True,
            timeout_seconds=math.ceil(seconds),
            _request_timeout=seconds + self._settings.api_timeout,
        )
        try:
            async with events:
                async for event in events:
                    if not isinstance(event, dict):
                        raise ActuatorError(f"Kubernetes: {what}: not an event: {event[:80]!r}")
                    version = event["raw_object"].get("metadata", {}).get("resourceVersion")
                    yield Change(event["type"], event["object"], version)
        except ApiException as error:
            raise_if_final(what, error)
            raise ActuatorError(f"Kubernetes: {what}: {error.status} {error.reason}") from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise WatchInterrupted(f"Kubernetes: {what}: {type(error).__name__}") from error
        except (ValueError, KeyError) as error:
            # Includes ERROR events whose status lacks fields that the client reads.
            raise ActuatorError(f"Kubernetes: {what}: unreadable event: {error!r}") from error

    def _fresh(self) -> None:
        _INTERRUPTED[self._plural].discard(self)
        metrics.AUTOSCALER_WATCHING.labels(self._plural).set(not _INTERRUPTED[self._plural])
        if self._problem:
            log.info("watch restored", watch=self._plural)
        self._problem = ""

    def _stale(self, error: Exception) -> None:
        """Log each new problem once; count every failure."""
        _INTERRUPTED[self._plural].add(self)
        metrics.AUTOSCALER_WATCHING.labels(self._plural).set(0)
        metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
        if str(error) != self._problem:
            self._problem = str(error)
            log.warning("watch lost: its data is out of date", watch=self._plural, error=str(error))
