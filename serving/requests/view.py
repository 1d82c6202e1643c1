"""The view of one request in progress that operators see."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from serving.request_context import RequestContext
from serving.routing.decision import RoutingDecision

NO_POSITIONS: Mapping[Any, int] = MappingProxyType({})
"""Positions of no request in the queue."""


class Phase(StrEnum):
    """Stage of a request."""

    PARKED = "parked"
    """Waiting in the queue because no group is ready."""
    QUEUED = "queued"
    """Waiting in the queue."""
    PREFILL = "prefill"
    """On a rank that has not sent output yet."""
    GENERATING = "generating"
    RESUMING = "resuming"
    """Waiting for another rank after the loss of its group."""


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
    """The last placement. None before the first one."""
    waiting_for: str
    """Why the request is not on a rank, as a sentence; empty if it is on one."""
    position: int | None
    """Position in the queue of its model, from 1. None if the request is not queued or its
    position is unknown."""
    predicted_wait: float | None
    """Wait predicted by admission, seconds. None if the request did not wait or the wait is
    unknown."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
