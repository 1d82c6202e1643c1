"""The ranks that routing may choose from, kept up to date by the events that change them.

Requests read them in place: nothing is collected or copied per request. They have the contents of a
snapshot of the ready groups, without the parts that routing does not read.
"""

from bisect import bisect_left
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from serving.fleet.rank_handle import RankHandle
from serving.routing.snapshot import GroupSnapshot, MemberState, RankId, RankSnapshot

SAMPLE_RANKS = 32
"""Number of ranks to score per request in a large fleet."""
_LEAST_GROUPS = 2


class CandidateRank:
    """A rank as routing sees it now: a ``routing.views.RankView``."""

    __slots__ = (
        "adapter_slots",
        "draining",
        "group_id",
        "handle",
        "healthy",
        "kv_block_size",
        "kv_blocks",
        "load",
        "max_model_len",
        "max_num_seqs",
        "rank",
        "rank_id",
    )

    def __init__(self, snapshot: RankSnapshot, handle: RankHandle) -> None:
        """Show a rank that has joined.

        Args:
            snapshot: The rank's identity, capacity and last report.
            handle: The connection to the rank, which counts this router's requests.
        """
        self.handle = handle
        self.rank_id = snapshot.rank_id
        self.group_id = snapshot.group_id
        self.rank = snapshot.rank
        self.adapter_slots = snapshot.adapter_slots
        self.max_model_len = snapshot.max_model_len
        self.max_num_seqs = snapshot.max_num_seqs
        self.kv_blocks = snapshot.kv_blocks
        self.kv_block_size = snapshot.kv_block_size
        self.update(snapshot)

    def update(self, snapshot: RankSnapshot) -> None:
        """Apply the changes of a report or an event."""
        self.healthy = snapshot.healthy
        self.draining = snapshot.draining
        self.load = snapshot.load

    @property
    def inflight_requests(self) -> int:
        """Number of this router's requests on the rank."""
        return self.handle.inflight_requests

    @property
    def outstanding_tokens(self) -> int:
        """Prompt and expected output tokens still to compute for these requests."""
        return self.handle.outstanding_tokens


@dataclass(frozen=True, slots=True, eq=False)
class CandidateGroup:
    """A ready group as routing sees it now: a ``routing.views.GroupView``."""

    group_id: str
    epoch: str
    ranks: Sequence[CandidateRank]
    """All ranks, or a sample of them, in ascending order."""
    state: MemberState = MemberState.READY
    reason: str = ""

    def part(self, start: int, count: int) -> "CandidateGroup":
        """Return the group with ``count`` of its ranks from rank ``start`` on, cyclically."""
        ranks, start = self.ranks, start % len(self.ranks)
        rest = start + count - len(ranks)
        chosen = ranks[start : start + count] if rest <= 0 else [*ranks[:rest], *ranks[start:]]
        return replace(self, ranks=chosen)


@dataclass(frozen=True, slots=True, eq=False)
class CandidateFleet:
    """All ready ranks, or a sample of them: a ``routing.views.FleetView``."""

    groups: Sequence[CandidateGroup]
    """The groups, ordered by id."""
    complete: bool
    """Whether it contains all ranks of all ready groups."""
    history: Sequence[GroupSnapshot] = ()

    @property
    def ready(self) -> bool:
        """Whether any group accepts requests."""
        return bool(self.groups)


class Candidates:
    """The ready groups; provides a sample of them per request if there are many ranks.

    Scoring all of 512 ranks takes longer than everything else that the router does for a request,
    for almost no gain: the best of a few dozen is nearly the best of all (Mitzenmacher, "The power
    of two choices in randomized load balancing", 2001).
    """

    def __init__(self) -> None:
        """Start without groups."""
        self._names: list[str] = []
        self._groups: list[CandidateGroup] = []
        self._ranks = 0
        self.whole = CandidateFleet(self._groups, complete=True)
        """All ready groups."""

    def __len__(self) -> int:
        """Return the number of ready groups."""
        return len(self._groups)

    def add(self, group_id: str, epoch: str, ranks: Sequence[CandidateRank]) -> None:
        """Add a group that has become ready.

        Args:
            group_id: Its id; no group with this id is ready.
            epoch: Its epoch.
            ranks: All its ranks, in ascending order.
        """
        index = bisect_left(self._names, group_id)
        self._names.insert(index, group_id)
        self._groups.insert(index, CandidateGroup(group_id, epoch, ranks))
        self._ranks += len(ranks)

    def remove(self, group_id: str) -> None:
        """Remove a group that is no longer ready."""
        index = bisect_left(self._names, group_id)
        del self._names[index]
        self._ranks -= len(self._groups.pop(index).ranks)

    def handle(self, rank_id: RankId) -> RankHandle | None:
        """Return the connection to a rank; None if its group is no longer ready."""
        rank = self._find(rank_id)
        return None if rank is None else rank.handle

    def select(self, wanted: AbstractSet[RankId], turn: int) -> CandidateFleet:
        """Return the ranks to choose from; valid until the next event of the fleet.

        Args:
            wanted: Ranks to include if their groups are ready.
            turn: Number of earlier calls; each call continues after the previous call's ranks.

        Returns:
            All ranks if there are few; otherwise the wanted ranks and enough others for a sample:
            whole groups, or parts of at least two groups if groups are large.
        """
        if self._ranks <= 2 * SAMPLE_RANKS:
            return self.whole
        groups = self._groups
        count = len(groups)
        width = min(max(_LEAST_GROUPS, -(-SAMPLE_RANKS * count // self._ranks)), count)
        each = SAMPLE_RANKS // min(_LEAST_GROUPS, count)
        lap, start = divmod(turn * width, count)
        rest = start + width - count
        sample = groups[start : start + width] if rest <= 0 else groups[:rest] + groups[start:]
        for index, group in enumerate(sample):
            if len(group.ranks) > each:
                # Groups before the start begin their next round.
                sample[index] = group.part((lap + (index < rest)) * each, each)
        for rank_id in wanted:
            self._include(sample, rank_id)
        return CandidateFleet(sample, complete=False)

    def _include(self, sample: list[CandidateGroup], rank_id: RankId) -> None:
        """Add a rank to a sample."""
        rank = self._find(rank_id)
        if rank is None:
            return
        index = bisect_left(sample, rank_id.group_id, key=_name)
        if index == len(sample) or sample[index].group_id != rank_id.group_id:
            group = self._groups[bisect_left(self._names, rank_id.group_id)]
            whole = len(group.ranks) <= SAMPLE_RANKS
            sample.insert(index, group if whole else replace(group, ranks=[rank]))
        elif rank not in sample[index].ranks:
            ranks = sorted([*sample[index].ranks, rank], key=_number)
            sample[index] = replace(sample[index], ranks=ranks)

    def _find(self, rank_id: RankId) -> CandidateRank | None:
        index = bisect_left(self._names, rank_id.group_id)
        if index == len(self._groups):
            return None
        group = self._groups[index]
        if (group.group_id, group.epoch) != rank_id.group or rank_id.rank >= len(group.ranks):
            return None
        return group.ranks[rank_id.rank]


def _name(group: CandidateGroup) -> str:
    return group.group_id


def _number(rank: CandidateRank) -> int:
    return rank.rank
