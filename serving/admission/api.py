"""The interface of admission: a request waits for its turn and is placed on a rank."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from serving.admission.budgets import Reservation
from serving.admission.quotas import Lease
from serving.dispatch.dispatcher import Placement, PlacementRequest
from serving.request_context import Priority, RequestContext
from serving.routing.snapshot import RankId


@dataclass(slots=True, eq=False, kw_only=True)
class AdmissionRequest(PlacementRequest):
    """One request, from its entry into admission to its release.

    The caller sets the fields without a default; admission maintains the others.
    """

    prompt_tokens: int
    output_tokens: int
    """Number of expected output tokens, over all choices."""
    deadline: float
    """Deadline, seconds on the router's monotonic clock."""
    max_output_tokens: int = 0
    """Maximum output tokens of the request, over all choices."""

    weight: float = 1.0
    """The tenant's share of the fleet relative to other tenants."""
    lease: Lease | None = None
    """The request's share of its tenant's quotas. None if the tenant has no limits."""
    reservation: Reservation | None = None
    """The request's budget reservation. None if no budget applies."""
    entered_at: float = 0.0
    """Start time of the current wait, seconds on the monotonic clock."""
    placed_at: float | None = None
    """Time of placement on the current rank, monotonic seconds. None while not placed."""
    turn: asyncio.Future[Placement] | None = None
    """Resolves with the placement, or fails with the request's error. None if never queued."""
    predicted: float | None = None
    """Predicted wait, seconds. None if unknown."""
    ended: Exception | None = None
    """Why the request was ended from outside, possibly before it was queued. None if it was not."""
    why: str = "other requests are before it"
    """Why the last attempt to place the request failed."""

    tenant: str = field(init=False)
    """The tenant whose quotas and share apply."""
    priority: Priority = field(init=False)
    tokens: int = field(init=False)
    """Number of prompt tokens plus expected output tokens; at least 1."""

    def __post_init__(self) -> None:
        """Copy the fields that the queue compares."""
        self.tenant = self.context.tenant
        self.priority = self.context.priority
        self.tokens = max(self.prompt_tokens + self.output_tokens, 1)


class Bystander(Protocol):
    """Preemptible work on the ranks; implemented by ``serving.batch``."""

    def arrived(self, rank: RankId) -> None:
        """Called after a request has been placed on a rank."""
        ...

    def make_room(self) -> bool:
        """Called when no rank has capacity for a request; returns whether one may have it now."""
        ...


class Admission(Protocol):
    """Decides when a request is placed; implemented by ``controller.AdmissionController``."""

    def check(self, context: RequestContext) -> None:
        """Reject a request that ``enter`` would reject anyway, before any work is done for it.

        Raises:
            Overloaded: The queue is full, or the tenant's quota is exhausted.
            BudgetExceeded: A budget is known to be used up.
        """
        ...

    async def enter(self, request: AdmissionRequest) -> Placement:
        """Wait for the request's turn and place it.

        Raises:
            Overloaded: The wait would be too long, or a quota is exhausted; raised immediately.
            BudgetExceeded: A budget is used up.
            DeadlineExceeded: No rank accepted the request before its deadline.
        """
        ...

    async def resume(self, request: AdmissionRequest) -> Placement:
        """Place a request again after the loss of its group, ahead of all queued requests.

        Raises:
            DeadlineExceeded: No rank accepted the request before its deadline.
        """
        ...

    async def reserve(self, request: AdmissionRequest) -> None:
        """Reserve from the budgets that apply to a request, unless this has been done already.

        Called by ``enter``.

        Raises:
            BudgetExceeded: A budget is used up.
            NotReady: The budgets cannot be checked.
        """
        ...

    def give_back(self, request: AdmissionRequest) -> None:
        """Release the reservations of a request that will not be placed. Safe to call twice."""
        ...

    def place_in_gap(self, request: AdmissionRequest) -> Placement | None:
        """Place a batch line's request now; None if other requests wait or no rank has capacity.

        The request is neither queued nor counted in quotas and predicted waits.

        Raises:
            InvalidRequest: No rank can ever accept the request.
            NotReady: The router is shutting down.
        """
        ...

    def release(
        self, request: AdmissionRequest, *, generated_tokens: int, cached_tokens: int = 0
    ) -> None:
        """End a request that entered, whether it succeeded or not. Safe to call twice."""
        ...
