"""Watches, as in "Efficient detection of changes" of Kubernetes' API concepts.

A watch from a resourceVersion sends the later changes. From "0" or without one, it first sends all
objects as ADDED. From an expired version, it answers 200 and then an ERROR event
whose object is a Status with code 410 (recorded), or 410 at once when ``gone`` is "status". With
selectors, an object that no longer fits is DELETED and one that begins to fit is ADDED. It ends
after ``timeoutSeconds``, with a bookmark before the end if bookmarks were asked for.
"""

import asyncio
import json
from typing import Any

from aiohttp import web

from tests.kube import selectors
from tests.kube.errors import bad_request, expired
from tests.kube.kinds import Kind
from tests.kube.store import Event, Store

_LONGEST = 1800.0
"""Default duration of a watch, seconds."""


class Watches:
    """The watches of one server."""

    def __init__(self, store: Store):
        self.gone = "event"
        """Response to an expired version: "event" or "status"."""
        self.open = 0
        """Number of open watches."""
        self._store = store
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news = asyncio.Event()
        self._store.listeners.append(self._changed)

    def detach(self) -> None:
        self._store.listeners.remove(self._changed)

    def _changed(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def serve(
        self, request: web.BaseRequest, kind: Kind, namespace: str
    ) -> web.StreamResponse:
        """Serve a watch until its timeout or until the client disconnects.

        Raises:
            ApiError: 400 or 410.
        """
        query = request.query
        fits = _filter(query, kind, namespace)
        given = query.get("resourceVersion", "")
        initial = query.get("sendInitialEvents") == "true" or given in {"", "0"}
        with self._store.lock:
            since = self._store.revision if initial else _number(given)
            first = self._store.all(kind, namespace, fits)
        old = not initial and since < self._store.oldest
        if old and self.gone == "status":
            raise expired(since, self._store.oldest)
        answer = web.StreamResponse()
        answer.content_type = "application/json"
        await answer.prepare(request)
        self.open += 1
        try:
            if old:
                await _send(answer, "ERROR", expired(since, self._store.oldest).status())
                return answer
            if initial:
                for item in first:
                    await _send(answer, "ADDED", item)
                if query.get("sendInitialEvents") == "true":
                    end = {"k8s.io/initial-events-end": "true"}
                    await _send(answer, "BOOKMARK", _mark(kind, since, annotations=end))
            await self._follow(request, answer, kind, fits, since)
        except ConnectionError:
            pass  # the client is gone
        finally:
            self.open -= 1
        return answer

    async def _follow(
        self, request: web.BaseRequest, answer: Any, kind: Kind, fits: Any, since: int
    ) -> None:
        bookmarks = request.query.get("allowWatchBookmarks") in {"true", "1"}
        seconds = float(request.query.get("timeoutSeconds") or _LONGEST)
        read = 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    news = self._news
                    events = self._store.events[read:]
                    read += len(events)
                    for event in events:
                        if event.kind is not kind or event.revision <= since:
                            continue
                        if event.what == "BOOKMARK":
                            sent = (event.what, _mark(kind, event.revision)) if bookmarks else None
                        else:
                            sent = _as_sent(event, fits)
                        if sent is not None:
                            await _send(answer, *sent)
                    await news.wait()
        except TimeoutError:
            if bookmarks:
                await _send(answer, "BOOKMARK", _mark(kind, self._store.revision))


def _as_sent(event: Event, fits: Any) -> tuple[str, Any] | None:
    now = event.what != "DELETED" and fits(event.item)
    before = event.before is not None and fits(event.before)
    if now:
        return ("MODIFIED" if before else "ADDED"), event.item
    return ("DELETED", event.item) if before else None


def _filter(query: Any, kind: Kind, namespace: str) -> Any:
    by_label = selectors.label_test(query.get("labelSelector", ""))
    by_field = selectors.field_test(query.get("fieldSelector", ""), kind.plural)
    return lambda item: (
        (not namespace or item["metadata"].get("namespace") == namespace)
        and by_label(item)
        and by_field(item)
    )


def _number(version: str) -> int:
    if not version.isdigit():
        raise bad_request(f"invalid resource version: {version!r}")
    return int(version)


def _mark(kind: Kind, revision: int, **metadata: Any) -> dict[str, Any]:
    return {
        "kind": kind.kind,
        "apiVersion": kind.api_version,
        "metadata": {"resourceVersion": str(revision), **metadata},
    }


async def _send(answer: web.StreamResponse, what: str, item: Any) -> None:
    await answer.write(json.dumps({"type": what, "object": item}).encode() + b"\n")
