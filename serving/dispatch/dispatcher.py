"""Places a request: chooses a rank with the scheduler, and sends the request over its link."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Protocol

from serving.clock import Clock
from serving.errors import GroupLost, InvalidRequest, NotReady, Overloaded
from serving.fleet.membership import FleetMembership
from serving.fleet.rank_handle import LinkedStream, RankHandle
from serving.request_context import RequestContext
from serving.routing.decision import NoCandidate, NoCandidateKind, RoutingDecision, RoutingRequest
from serving.routing.scheduler import RankScheduler
from serving.settings import RoutingSettings


class GroupIsolation(Protocol):
    """Keeps a request away from some groups; implemented by ``requests.poison.Trial``."""

    @property
    def occupied(self) -> Collection[tuple[str, str]]:
        """Groups (id, epoch) to avoid if any other group fits."""
        ...

    def placed(self, group: tuple[str, str]) -> None:
        """Record the group that the request was sent to."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class PlacementRequest:
    """The parts of a request that the dispatcher uses."""

    context: RequestContext
    stream: LinkedStream
    """The message to send, and the receiver of its deltas."""
    routing: RoutingRequest
    isolation: GroupIsolation | None = None
    """Isolation of a request that is suspected of killing groups. None if it is not a suspect."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The placement of a request on a rank."""

    decision: RoutingDecision
    handle: RankHandle
    sent_at: float
    """Time of sending, seconds on the router's monotonic clock."""


class Dispatcher:
    """Places requests on the ranks of one router's fleet."""

    def __init__(
        self, membership: FleetMembership, settings: RoutingSettings, clock: Clock
    ) -> None:
        self._membership = membership
        self._candidates = membership.candidates
        self._clock = clock
        self._scheduler = RankScheduler(settings, membership.prefixes, membership.adapters)
        self._samples = 0

    @property
    def ready(self) -> bool:
        """Whether any group accepts requests, regardless of load."""
        return self._membership.ready

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` whenever a change in the fleet may have freed capacity.

        Returns:
            A function that unsubscribes the listener.
        """
        return self._membership.subscribe(listener)

    def try_place(self, request: PlacementRequest) -> Placement | str:
        """Send the request to the rank that routing chooses.

        Returns:
            The placement, or the reason why no rank accepts the request now.

        Raises:
            InvalidRequest: No rank can ever accept the request.
            NotReady: The request names an adapter, and no rank of a ready group runs any.
        """
        stream, record = request.stream, request.context.record
        trace = record.trace
        if trace is not None:
            trace.start_placement(stream.work.trace_headers)
        routing = request.routing
        if request.isolation is not None:
            routing = replace(routing, avoid=request.isolation.occupied)
        decision = self._choose(routing)
        if isinstance(decision, NoCandidate) and routing.avoid:
            # Sharing a group is better than waiting, which would block the queue.
            decision = self._choose(replace(routing, avoid=()))
        if isinstance(decision, NoCandidate):
            _require_possible(decision)
            return decision.reason
        rank_id = decision.rank_id
        handle = self._candidates.handle(rank_id)
        if handle is None:
            return "the chosen rank was just lost"
        try:
            handle.submit(stream)
        except (GroupLost, Overloaded) as error:
            return str(error)
        if request.isolation is not None:
            request.isolation.placed(rank_id.group)
        record.decisions.append(decision)
        if trace is not None:
            trace.placed(rank_id.group_id, rank_id.rank, decision.reason, decision.matched_tokens)
        return Placement(decision, handle, self._clock.monotonic())

    def _choose(self, request: RoutingRequest) -> RoutingDecision | NoCandidate:
        """Score a sample of a large fleet; score the whole fleet if no sampled rank fits.

        A frozen snapshot of the whole fleet is taken only to explain the decision, if the request
        asks for it, or to explain why no rank was found.
        """
        now = self._clock.monotonic()
        hints = self._scheduler.hints(request, now)
        if not request.explain:
            self._samples += 1
            fleet = self._candidates.select(hints.ranks(), self._samples)
            decision = self._scheduler.choose(fleet, request, now, hints)
            if isinstance(decision, NoCandidate) and not fleet.complete:
                decision = self._scheduler.choose(self._candidates.whole, request, now, hints)
            if isinstance(decision, RoutingDecision):
                return decision
            if decision.kind is not NoCandidateKind.NOT_READY:
                return decision
        return self._scheduler.choose(self._membership.snapshot(), request, now, hints)


def _require_possible(decision: NoCandidate) -> None:
    """Check that waiting can help.

    Raises:
        InvalidRequest: No rank can ever take the request.
        NotReady: No rank of a ready group runs adapters. Waiting would block the requests without
            adapters in the queue.
    """
    if decision.kind is NoCandidateKind.TOO_LARGE:
        raise InvalidRequest(decision.reason)
    if decision.kind is NoCandidateKind.UNSUITABLE:
        raise NotReady(decision.reason)
