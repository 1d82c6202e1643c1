"""What the API server has of one kind, kept up to date: a list once, then a watch that goes on.

A watch goes on where it was when it ends or breaks off (``resourceVersion``, moved on by events and
bookmarks). It starts with a new list when the server has forgotten that version (410) or answers
anything else than events. In between it waits, longer each time and with jitter.
"""

import asyncio
import math
import random
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
from serving.autoscaler.actuators.kubernetes_errors import check_final
from serving.settings import KubernetesSettings
from serving.telemetry import metrics

_FIRST_BACKOFF = 0.25
_MOST_BACKOFF = 5.0
"""Also what is between two lists where listing is allowed and watching is not."""
_SHORTEST = 1.0
"""A watch that ends sooner (seconds) was not ended by its time."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")

Seen = TypeVar("Seen")


class Dropped(ActuatorError):
    """A watch broke off on the way; it can go on where it was."""


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch."""

    kind: str
    """ADDED, MODIFIED, DELETED, or BOOKMARK (nothing but a newer version)."""
    item: Any
    version: str | None
    """From where a later watch goes on; None: the server did not say."""


class Mirror(Generic[Seen]):
    """The cluster's "nodes" or the namespace's "pods", each boiled down to what matters of it."""

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
        """Mirror those with the labels of ``selector``.

        Args:
            api: the server.
            settings: its time-outs.
            plural: "nodes" or "pods".
            read: what is kept of an object; None: nothing.
            changed: called when ``items`` is not what it was.
            selector: label selector.
            pause: waits so many seconds.
            chance: 0 to 1, for the jitter.
        """
        self.items: dict[str, Seen] = {}
        """By name; empty before the first list."""
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
        self._trouble = ""
        metrics.AUTOSCALER_WATCHING.labels(plural).set(0)

    async def run(self) -> None:
        """Keep ``items`` up to date for ever; whatever fails is said and tried again."""
        while True:
            try:
                if self._version is None:
                    await self._list()
                await self._follow()
                continue
            except Dropped as error:
                self._stale(error)
            except ActuatorError as error:
                self._version = None
                self._stale(error)
            except Exception as error:
                self._version = None
                log.exception("a watch failed", watch=self._plural)
                self._stale(error)
            # Full jitter from half: all watches of a server that was away must not come at once.
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
            raise Dropped(f"Kubernetes: watch {self._plural}: ended at once")
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
        """Yield what happens after the version.

        Ends when the server has watched for ``watch_timeout``. A connection that died unnoticed is
        given up ``api_timeout`` after that.

        Raises:
            Dropped: the connection broke off.
            ActuatorError: the server forgot the version, refuses or answers something else.
        """
        what = f"watch {self._plural}"
        seconds = self._settings.watch_timeout

        async def opened(**query: Any) -> Any:
            del query["_preload_content"]  # for calls that have no raw form of their own
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
                        raise ActuatorError(f"Kubernetes: {what}: no event: {event[:80]!r}")
                    version = event["raw_object"].get("metadata", {}).get("resourceVersion")
                    yield Change(event["type"], event["object"], version)
        except ApiException as error:
            check_final(what, error)
            raise ActuatorError(f"Kubernetes: {what}: {error.status} {error.reason}") from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Dropped(f"Kubernetes: {what}: {type(error).__name__}") from error
        except (ValueError, KeyError) as error:
            # Among them an ERROR event whose status lacks what the client takes from it.
            raise ActuatorError(f"Kubernetes: {what}: unreadable event: {error!r}") from error

    def _fresh(self) -> None:
        metrics.AUTOSCALER_WATCHING.labels(self._plural).set(1)
        if self._trouble:
            log.info("watched again", watch=self._plural)
        self._trouble = ""

    def _stale(self, error: Exception) -> None:
        """Say it once for each trouble, count it each time."""
        metrics.AUTOSCALER_WATCHING.labels(self._plural).set(0)
        metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.warning("not watched: what is known is old", watch=self._plural, error=str(error))
