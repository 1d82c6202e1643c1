"""What an operator sees of one request in progress."""

from dataclasses import dataclass
from enum import StrEnum

from serving.request_context import RequestContext
from serving.routing.decision import RoutingDecision


class Phase(StrEnum):
    """Where a request is."""

    PARKED = "parked"
    """Waiting in the queue because no group is ready."""
    QUEUED = "queued"
    """Waiting in the queue."""
    PREFILL = "prefill"
    """On a rank that has not sent output yet."""
    GENERATING = "generating"
    RESUMING = "resuming"
    """Its group was lost; waiting for another rank."""


@dataclass(frozen=True, slots=True)
class RequestView:
    """One prompt of a request in progress; holds no text of prompt or output."""

    number: str
    """The router's own id of the prompt; unique."""
    request_id: str
    """vLLM's id, which contains the client's."""
    context: RequestContext
    phase: Phase
    decision: RoutingDecision | None
    """The last placement; None before the first."""
    waiting_for: str
    """Why it is on no rank, as a sentence; empty: it is on one."""
    predicted_wait: float | None
    """Wait that admission predicted, seconds; None: it did not wait, or unknown."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
