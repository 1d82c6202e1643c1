"""A dispatcher without a fleet: slots that admission fills."""

from dataclasses import dataclass

from serving.dispatch.dispatcher import Placement
from serving.routing.decision import RoutingDecision, RoutingRequest
from serving.routing.snapshot import RankId

DECISION = RoutingDecision(RankId("g0", "e", 0), "a slot is free")
ROUTING = RoutingRequest(1)


@dataclass(eq=False)
class SlotStream:
    """Replaces a request's stream: a name and the slots that it needs."""

    name: str = "x"
    size: int = 1


class SlotDispatcher:
    """Places requests as long as slots are free; also the handle of its only rank.

    Implements the interface of ``serving.dispatch.dispatcher.Dispatcher``.
    """

    def __init__(self, capacity=1, *, ready=True):
        self.capacity = capacity
        self.ready = ready
        self.inside = 0
        """Occupied slots."""
        self.placed = []
        """Names of placed requests, in order."""
        self.tries = []
        """Names of requests, in the order in which their placement was tried."""
        self.refuse = {}
        """Errors by name, raised by their placement if no other request is placed."""
        self.listeners = []

    def subscribe(self, listener):
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def try_place(self, request):
        stream = request.stream
        self.tries.append(stream.name)
        if not self.ready:
            return "no group is ready"
        if self.inside + stream.size > self.capacity:
            return "no room"
        if stream.name in self.refuse:
            raise self.refuse[stream.name]
        self.inside += stream.size
        self.placed.append(stream.name)
        return Placement(DECISION, self, 0.0)

    def release(self, stream):
        self.inside -= stream.size
