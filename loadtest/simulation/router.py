"""The model's router: the real choice of a rank and the real admission queue, in virtual time.

What is the product's own code: ``routing.chooser.decide`` with its filters and scorers over a
frozen snapshot, ``routing.prefix_index``, ``admission.queue`` and ``admission.predictor``. What
stands in for it is ``admission.controller``, which waits on futures: its order of questions is
repeated here.
"""

from loadtest.simulation.group import Group
from loadtest.simulation.sequence import Sequence
from serving.admission.predictor import WaitPredictor
from serving.admission.queue import FairQueue
from serving.routing.decision import Demand, NoPickKind, Pick
from serving.routing.prefix_index import PrefixIndex
from serving.routing.scheduler import decide
from serving.routing.scorers import Evidence
from serving.routing.snapshot import FleetSnapshot, MemberState
from serving.settings import AdmissionSettings, RoutingSettings


class Router:
    """One router, which sees all groups."""

    def __init__(
        self, routing: RoutingSettings, admission: AdmissionSettings, request_timeout: float
    ) -> None:
        """Know no group.

        Args:
            routing: weights and bounds.
            admission: of the queue.
            request_timeout: seconds that a request may wait.
        """
        self._routing = routing
        self._admission = admission
        self._timeout = request_timeout
        self.groups: dict[str, Group] = {}
        self.queue: FairQueue[Sequence] = FairQueue(
            requests=admission.queue_requests,
            tokens=admission.queue_tokens,
            ageing=admission.ageing,
        )
        self._predictor = WaitPredictor(admission.rate_window)
        self._prefixes = PrefixIndex(self._routing.prefix_blocks, self._routing.history_blocks)
        self._turn = 0
        self.picks = 0

    @property
    def ready(self) -> int:
        """Groups that take work."""
        return sum(group.state is MemberState.READY for group in self.groups.values())

    @property
    def parked(self) -> int:
        """Requests that wait while no group takes work."""
        return len(self.queue) if self.queue and not self.ready else 0

    def fleet(self) -> FleetSnapshot:
        """Return the fleet as it is now."""
        return FleetSnapshot("simulation", tuple(map(Group.snapshot, self.groups.values())))

    def arrive(self, sequence: Sequence, now: float) -> tuple[Group, bool] | None:
        """Launch, queue or refuse a request; return its group and whether that changed steps.

        A refused one is marked so.
        """
        if not self.queue and (placed := self._launch(sequence, now)) is not None:
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

    def resume(self, sequence: Sequence, now: float) -> None:
        """Queue a request that lost its group before all others."""
        if sequence.launched_at is not None:
            self._predictor.lost(sequence.launched_tokens, sequence.launched_at, now)
        sequence.launched_at = None
        sequence.resume()
        self.queue.push_resumed(sequence)

    def ended(self, sequence: Sequence, now: float) -> None:
        """Note that a request left its rank."""
        assert sequence.launched_at is not None
        self._predictor.ended(sequence.launched_tokens, sequence.launched_at, now)

    def next_turn(self, now: float) -> tuple[Sequence, Group | None, bool] | None:
        """Launch the head of the queue, or give it up past its deadline; none: it has to wait.

        Returns:
            The request, its group (none: given up) and whether that changed the group's steps.
        """
        head = self.queue.head(now)
        if head is None:
            return None
        if now - head.at > self._timeout:
            self.queue.discard(head)
            head.refused = True
            return head, None, False
        placed = self._launch(head, now)
        if placed is None and not head.refused:
            return None
        self.queue.pop(now)
        group, changed = placed or (None, False)
        return head, group, changed

    def told(self, group: Group) -> None:
        """Take in what the group's prefix caches have stored and removed."""
        for index, rank in enumerate(group.ranks):
            cache = rank.cache
            if cache.stored or cache.removed:
                first = cache.sequence == 0
                removed, stored = cache.report()
                self._prefixes.apply(
                    (group.group_id, "1", index),
                    sequence=cache.sequence,
                    reset=first,
                    block_size=group.calibration.kv_block,
                    removed=removed,
                    stored=stored,
                )

    def forget(self, group: Group) -> None:
        """Drop a group that is gone."""
        del self.groups[group.group_id]
        for index in range(len(group.ranks)):
            self._prefixes.forget((group.group_id, "1", index))

    def _launch(self, sequence: Sequence, now: float) -> tuple[Group, bool] | None:
        demand = Demand(sequence.prompt_tokens, sequence.left, sequence.names)
        evidence = Evidence(self._prefixes.matches(sequence.names), self._prefixes.guessing)
        pick = decide(self.fleet(), demand, self._routing, evidence, self._turn)
        self.picks += 1
        if not isinstance(pick, Pick):
            sequence.refused = pick.kind is NoPickKind.TOO_LARGE
            return None
        self._turn += 1
        group = self.groups[pick.group_id]
        sequence.launched_at = now
        sequence.launched_tokens = sequence.tokens
        self._predictor.launched(sequence.tokens, now)
        return group, group.submit(pick.rank, sequence, now)
