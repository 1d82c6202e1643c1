"""The context of one request: tenant, limits, and a record of its processing.

The edge creates the context and sets ``request_context_var``. Admission, routing and requests read
the context and write to its ``record``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypedDict

from serving.routing.decision import RoutingDecision
from serving.telemetry.tracing import RequestTrace


class Priority(IntEnum):
    """Priority of a request in the admission queue; lower values come first, as in vLLM."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2


@dataclass(slots=True)
class RequestRecord:
    """Record of one request's processing; the edge reads it for headers and logs."""

    decisions: list[RoutingDecision] = field(default_factory=list)
    """All placements on a rank, in order; more than one after a resumption."""
    waited: float = 0.0
    """Seconds in the admission queue, including parked time."""
    parked: bool = False
    """Whether the request waited because no group was ready."""
    resumes: int = 0
    """Number of resumptions on another group after a loss."""
    arrived_at: float | None = None
    """Arrival at the edge, monotonic seconds."""
    first_token_at: float | None = None
    """Arrival of the first token, monotonic seconds; None before it."""
    cached_tokens: int = 0
    """Prompt tokens that came from a KV cache."""
    load_checked: bool = False
    """Whether ``FleetClient.check_load`` has passed; it runs once per request."""
    responded: bool = False
    """Whether any part of the response has been sent, including a keep-alive comment."""
    trace: RequestTrace | None = None
    """The request's trace; None: tracing is off, or the request is not sampled."""


class ContextFields(TypedDict):
    """Fields of a request's log line that come from its context."""

    tenant: str
    priority: str
    waited: float
    resumes: int
    parked: bool | None
    group: str | None
    rank: int | None
    cached_tokens: int | None
    trace_id: str | None


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Tenant, priority and limits of one request; the defaults apply to a router without keys."""

    tenant: str = "anonymous"
    priority: Priority = Priority.STANDARD
    session_id: str | None = None
    roles: frozenset[str] = frozenset()
    explain: bool = False
    """Whether the client requested an explanation of the routing decision and is permitted to see
    it."""
    deadline: float | None = None
    """The client's deadline, seconds on the router's monotonic clock. None: only
    ``router.request_timeout`` applies."""
    record: RequestRecord = field(default_factory=RequestRecord, compare=False)

    def log_fields(self) -> ContextFields:
        """Return the fields of the request's log line."""
        record = self.record
        last = record.decisions[-1] if record.decisions else None
        return {
            "tenant": self.tenant,
            "priority": self.priority.name.lower(),
            "waited": record.waited,
            "resumes": record.resumes,
            "parked": record.parked or None,
            "group": last.rank_id.group_id if last else None,
            "rank": last.rank_id.rank if last else None,
            "cached_tokens": record.cached_tokens if last else None,
            "trace_id": record.trace.trace_id if record.trace else None,
        }


request_context_var: ContextVar[RequestContext | None] = ContextVar(
    "serving.request_context", default=None
)
"""Context of the request handled by the current task; None outside of requests."""


def current_context() -> RequestContext:
    """Return the context of the current request, or a default context outside of requests."""
    return request_context_var.get() or RequestContext()


@contextmanager
def use_request_context(context: RequestContext | None) -> Iterator[None]:
    """Set ``request_context_var`` in the block.

    None must be set too: uvicorn may read the next request of a connection in the context of the
    previous request, which must not apply to the next.
    """
    token = request_context_var.set(context)
    try:
        yield
    finally:
        request_context_var.reset(token)
