"""Requests in progress: phase, rank and why it was chosen, but no text of prompts or outputs."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from heapq import nsmallest
from typing import Any, Protocol

import msgspec

from serving.clock import Clock
from serving.console.hub import Parts
from serving.errors import InvalidRequest
from serving.request_context import RequestContext
from serving.requests.view import NO_POSITIONS, RequestView

PREFIX = "requests"
"""Beginning of the names of these feeds."""
MAX_REQUESTS = 200
"""Maximum number of requests in a snapshot, the oldest first; ``total`` counts all."""
MAX_POSITIONS = 1000
"""Maximum position in the queue that is shown."""
_encode = msgspec.json.Encoder().encode


class RunningRequest(Protocol):
    """A ``requests.request.FleetRequest``."""

    @property
    def context(self) -> RequestContext:
        """Tenant, priority and record of the request."""
        ...

    def view(self, positions: Mapping[Any, int] = NO_POSITIONS) -> RequestView:
        """Return the current state, with the position in the queue if it is in ``positions``."""
        ...

    def cancel(self, reason: str) -> None:
        """End the request."""
        ...


Source = Callable[[], Iterable[RunningRequest]]
Positions = Callable[[int], Mapping[Any, int]]
"""Returns the positions in their queues, from 1, of at most so many queued requests per queue."""


class RequestsFeed:
    """Builds the part ``requests``, for one tenant or for all."""

    def __init__(
        self, source: Source, positions: Positions, clock: Clock, tenant: str | None
    ) -> None:
        """Create the feed.

        Args:
            source: Returns the requests in progress.
            positions: Returns the positions of queued requests.
            clock: The router's clock, for times of arrival.
            tenant: Show only requests of this tenant. None: all.
        """
        self._source = source
        self._positions = positions
        self._tenant = tenant
        # Constant, so that the times of arrival do not change between snapshots.
        self._epoch = clock.time() - clock.monotonic()

    def __call__(self) -> Parts:
        """Return the part as JSON."""
        requests = [
            request
            for request in self._source()
            if self._tenant is None or request.context.tenant == self._tenant
        ]
        # There may be thousands, so only those that are listed are examined.
        oldest = nsmallest(MAX_REQUESTS, requests, key=_arrival)
        positions = self._positions(MAX_POSITIONS)
        listed = [request.view(positions) for request in oldest]
        content = {
            "total": len(requests),
            # Of the listed requests.
            "phases": dict(Counter(str(view.phase) for view in listed)),
            "requests": [_request(view, self._epoch) for view in listed],
        }
        return {PREFIX: _encode(content)}


def cancel(source: Source, number: str, reason: str, tenant: str | None) -> None:
    """Cancel a request.

    Args:
        source: Returns the requests in progress.
        number: ``RequestView.number``.
        reason: Message of the error that its client gets.
        tenant: Cancel only a request of this tenant. None: of any.

    Raises:
        InvalidRequest: The tenant has no such request in progress.
    """
    for request in source():
        if tenant in {None, request.context.tenant} and request.view().number == number:
            request.cancel(reason)
            return
    raise InvalidRequest(f"no request {number} is in progress; it may have ended")


def _arrival(request: RunningRequest) -> float:
    # Requests without a time of arrival come from inside this process.
    return request.context.record.arrived_at or 0.0


def _request(view: RequestView, epoch: float) -> dict[str, Any]:
    context, decision = view.context, view.decision
    record = context.record
    arrived = record.arrived_at
    return {
        "number": view.number,
        "id": view.request_id,
        "tenant": context.tenant,
        # None: the router serves one model.
        "model": record.model,
        "key": context.key_id,
        "priority": context.priority.name.lower(),
        "session": context.session_id,
        "phase": view.phase.value,
        # Unix time, not an age: a snapshot in which nothing happened equals the last one.
        "since": None if arrived is None else round(epoch + arrived, 1),
        "waited": round(record.waited, 2),
        "waiting_for": view.waiting_for,
        "position": view.position,
        "predicted_wait": view.predicted_wait,
        "resumes": record.resumes,
        "prompt_tokens": view.prompt_tokens,
        "cached_tokens": view.cached_tokens,
        "output_tokens": view.output_tokens,
        "why": None if decision is None else decision.explain(),
    }
