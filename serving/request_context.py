"""Who asks, and what happened to the request: carried beside it from the edge to the fleet."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum

from serving.routing.decision import Pick
from serving.telemetry.tracing import NO_TRACE, RequestTrace


class Priority(IntEnum):
    """Which requests go first where there is a queue; lower is earlier, as in vLLM."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2


@dataclass(slots=True)
class Journal:
    """What became of one request; written on the way down, read by the edge for headers and log."""

    picks: list[Pick] = field(default_factory=list)
    """Every rank that it was given to, in order; more than one after a resumption."""
    waited: float = 0.0
    """Seconds in the admission queue, parked time included."""
    parked: bool = False
    """Whether it waited because no group was ready."""
    resumes: int = 0
    """How often it went on elsewhere after its group was lost."""
    arrived_at: float | None = None
    """When the edge saw it, on the router's monotonic clock."""
    first_token_at: float | None = None
    """When the first token came, on that clock."""
    cached_tokens: int = 0
    """Prompt tokens that came from a KV cache."""
    responded: bool = False
    """Whether any part of its answer is out, be it a comment."""
    trace: RequestTrace = NO_TRACE
    """Is told what happens."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The one who asks, as the edge made out; the defaults are a router without keys."""

    tenant: str = "anonymous"
    priority: Priority = Priority.STANDARD
    session_id: str | None = None
    roles: frozenset[str] = frozenset()
    explain: bool = False
    """Wants to see why a rank was picked, and may."""
    journal: Journal = field(default_factory=Journal, compare=False)


caller_var: ContextVar[Caller | None] = ContextVar("serving.request_context", default=None)
"""The caller of the request that the current context works on; the edge sets it."""


def caller() -> Caller:
    """Return the caller of the current context, or a nameless one."""
    return caller_var.get() or Caller()
