"""A simulated router: the real scheduler and the real admission queue in virtual time.

It runs the product's ``routing.scheduler.decide`` with its filters and scorers on a snapshot,
``routing.prefix_index``, ``admission.queue`` and ``admission.predictor``. Only
``admission.controller``, which waits on futures, is replaced: this module repeats its checks in the
same order.
"""

from loadtest.simulation.simulated_group import SimulatedGroup
from loadtest.simulation.simulated_request import SimulatedRequest
from serving.admission.predictor import WaitPredictor
from serving.admission.queue import FairQueue
from serving.routing.decision import NoCandidateKind, RoutingDecision, RoutingRequest
from serving.routing.prefix_index import PrefixIndex
from serving.routing.scheduler import decide
from serving.routing.scorers import AffinityHints
from serving.routing.snapshot import FleetSnapshot, MemberState, RankId
from serving.settings import AdmissionSettings, RoutingSettings


class SimulatedRouter:
    """A router that is connected to all groups."""

    def __init__(
        self, routing: RoutingSettings, admission: AdmissionSettings, request_timeout: float
    ) -> None:
        """Start without groups.

        Args:
            routing: Weights and bounds of routing.
            admission: Settings of the queue.
            request_timeout: Maximum wait of a request, seconds.
        """
        self._routing = routing
        self._admission = admission
        self._timeout = request_timeout
        self.groups: dict[str, SimulatedGroup] = {}
        self.queue: FairQueue[SimulatedRequest] = FairQueue(
            requests=admission.queue_requests,
            tokens=admission.queue_tokens,
            ageing=admission.ageing,
        )
        self._predictor = WaitPredictor(admission.rate_window)
        self._prefixes = PrefixIndex(self._routing.prefix_blocks, self._routing.history_blocks)
        self._turn = 0
        self.decisions = 0

    @property
    def ready(self) -> int:
        """Number of ready groups."""
        return sum(group.state is MemberState.READY for group in self.groups.values())

    @property
    def parked(self) -> int:
        """Number of requests that wait because no group is ready."""
        return len(self.queue) if self.queue and not self.ready else 0

    def fleet(self) -> FleetSnapshot:
        """Return a snapshot of the fleet."""
        return FleetSnapshot(
            "simulation", tuple(map(SimulatedGroup.snapshot, self.groups.values()))
        )

    def arrive(self, sequence: SimulatedRequest, now: float) -> tuple[SimulatedGroup, bool] | None:
        """Dispatch, queue or reject a request; a rejected one is marked ``refused``.

        Returns:
            The group and whether its steps changed; None if the request was not dispatched.
        """
        if not self.queue and (placed := self._place(sequence, now)) is not None:
            return placed
        if sequence.refused:
            return None
        predicted = None
        if self.ready:
            ahead = self.queue.tokens_ahead(sequence, now)
            predicted = self._predictor.wait(ahead + sequence.tokens, now)
        most = min(self._timeout, self._admission.max_wait or self._timeout)
        if self.queue.full_for(sequence) or (predicted is not None and predicted > most):
            sequence.refused = True
            return None
        self.queue.push(sequence, now)
        return None

    def resume(self, sequence: SimulatedRequest, now: float) -> None:
        """Queue a request that lost its group, ahead of all others."""
        if sequence.placed_at is not None:
            self._predictor.lost(sequence.placed_tokens, sequence.placed_at, now)
        sequence.placed_at = None
        sequence.resume()
        self.queue.push_resumed(sequence)

    def ended(self, sequence: SimulatedRequest, now: float) -> None:
        """Record that a request has left its rank."""
        assert sequence.placed_at is not None
        self._predictor.ended(sequence.placed_tokens, sequence.placed_at, now)

    def next_turn(self, now: float) -> tuple[SimulatedRequest, SimulatedGroup | None, bool] | None:
        """Dispatch the head of the queue, or reject it after its deadline.

        Returns:
            The request, its group (None if rejected) and whether the group's steps changed. None if
            the head has to wait.
        """
        head = self.queue.head(now)
        if head is None:
            return None
        if now - head.at > self._timeout:
            self.queue.discard(head)
            head.refused = True
            return head, None, False
        placed = self._place(head, now)
        if placed is None and not head.refused:
            return None
        self.queue.pop(now)
        group, changed = placed or (None, False)
        return head, group, changed

    def apply_cache_events(self, group: SimulatedGroup) -> None:
        """Apply the events of the group's prefix caches to the prefix index."""
        for index, rank in enumerate(group.ranks):
            cache = rank.cache
            if cache.stored or cache.removed:
                first = cache.sequence == 0
                removed, stored = cache.report()
                self._prefixes.apply(
                    RankId(group.group_id, "1", index),
                    sequence=cache.sequence,
                    reset=first,
                    block_size=group.calibration.kv_block,
                    removed=removed,
                    stored=stored,
                )

    def forget(self, group: SimulatedGroup) -> None:
        """Remove a group."""
        del self.groups[group.group_id]
        for index in range(len(group.ranks)):
            self._prefixes.forget(RankId(group.group_id, "1", index))

    def _place(self, sequence: SimulatedRequest, now: float) -> tuple[SimulatedGroup, bool] | None:
        request = RoutingRequest(sequence.prompt_tokens, sequence.left, sequence.names)
        hints = AffinityHints(self._prefixes.matches(sequence.names), self._prefixes.guessing)
        decision = decide(self.fleet(), request, self._routing, hints, self._turn)
        self.decisions += 1
        if not isinstance(decision, RoutingDecision):
            sequence.refused = decision.kind is NoCandidateKind.TOO_LARGE
            return None
        self._turn += 1
        group = self.groups[decision.rank_id.group_id]
        sequence.placed_at = now
        sequence.placed_tokens = sequence.tokens
        self._predictor.placed(sequence.tokens, now)
        return group, group.submit(decision.rank_id.rank, sequence, now)
